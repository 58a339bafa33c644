"""The Recipe tab's texts: presets and what they change, YAML, command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ui.catalog.metrics import FEWEST_ROWS
from qlora_ui.estimate.advice import Advice
from qlora_ui.estimate.workload import fast_path_obstacle, workload_of
from qlora_ui.settings.consistency import without_effect
from qlora_ui.settings.intervals import num_held_back, num_warmup_steps, warmup_words
from qlora_ui.settings.presets import Preset
from qlora_ui.settings.run_config import RunConfig, label_of
from qlora_ui.settings.upstream import optimizer_words
from qlora_ui.ui.action import act_button
from qlora_ui.ui.markup import escape
from qlora_ui.ui.views.ready import beyond_context
from qlora_ui.ui.views.words import TO_TRASH

if TYPE_CHECKING:
    from qlora_ui.ui.draft import Draft

MOST_HELD_BACK = 0.3
"""Share of the rows beyond which holding back more for a check would leave too little to learn from."""


def block_head(title: str, about: str) -> str:
    """Title and sentence of a block."""
    return f'<h2 class="q-h2">{escape(title)}</h2><p class="q-sub">{escape(about)}</p>'


def group_head(title: str) -> str:
    """Title of a group of advanced options."""
    return f'<h3 class="q-h3 q-group">{escape(title)}</h3>'


def preset_choices(presets: Sequence[Preset]) -> list[tuple[str, str]]:
    """Words and names for the picker."""
    return [("Defaults", ""), *((preset.title, preset.name) for preset in presets)]


def preset_about(draft: Draft, presets: Sequence[Preset], unreadable: Mapping[str, str], own: Path) -> str:
    """What the chosen preset is for, and what it changes; below, which of the user's own presets are missing from the list, and why.

    Those of the folder `own` can be deleted.
    """
    preset = next((preset for preset in presets if preset.name == draft.preset), None)
    about = escape(preset.about) if preset is not None else "What suits most runs: NF4, rank 16 on every linear layer, three passes."
    if preset is not None and preset.card_gib:
        about += f' <span class="q-chip">for cards from {preset.card_gib:g} GB</span>'
    names = [label_of(path) for path in draft.baseline.differences(RunConfig())]
    listed = f'<span class="q-small">Changes {len(names)} options: {escape(", ".join(names))}.</span>' if names else ""
    if preset is not None and preset.path.parent == own:
        listed += f" {_delete_button(preset.name, preset.title)}"
    missing = "".join(
        f'<p class="q-note q-note-warn q-small">{escape(f"{name} is not in the list. {why}")} '
        f"{_delete_button(name.removesuffix('.yaml'), name)}</p>"
        for name, why in unreadable.items()
    )
    return f'<p class="q-sub">{about}</p>{listed}{missing}'


def _delete_button(name: str, title: str) -> str:
    words = f"Delete your preset “{title}”? {TO_TRASH}"
    asks = {"confirm": words, "yes": "Delete", "no": "Keep it", "danger": "1"}
    return act_button("Delete", "delete-preset", name, look="link", title=f"Delete {title}", **asks)


def save_button(taken: str, title: str) -> str:
    """Saves the settings as a preset of that title; asks first where its name is `taken` by one of the user's own."""
    if not taken:
        return act_button("Save", "save-preset")
    words = f"Replace your preset “{title}”? What it holds now is lost."
    return act_button("Save", "save-preset", taken, confirm=words, yes="Replace", no="Keep it", danger="1")


def automatic_words(draft: Draft, path: str) -> str:
    """What an "automatic" or a pair of numbers comes to with the settings of now; empty where there is nothing to say."""
    config = draft.config
    if config is None:
        return ""
    if path == "lora.alpha" and config.lora.alpha is None:
        return f"Now {config.alpha}, twice the adapter size"
    if path in ("train.batch_size", "train.accumulation"):
        return f"Effective batch {config.effective_batch}"
    steps = draft.duration.num_steps if draft.duration is not None else None
    if path == "train.warmup" and steps is not None and config.train.schedule != "constant":
        return f"{num_warmup_steps(config, steps)} of {steps} steps"
    if path == "train.fast_path" and config.train.fast_path == "auto" and draft.facts is not None:
        obstacle = fast_path_obstacle(draft.facts, config, draft.device)
        return f"Now off: {obstacle}" if obstacle is not None else "Now on"
    if path == "train.packing" and config.train.packing == "auto" and draft.facts is not None:
        return "Now on" if workload_of(draft.facts, config, draft.device).is_packed else "Now off"
    return ""


def idle_words(draft: Draft, path: str) -> str:
    """That an option does nothing beside the others as they are, and why; empty where it does something."""
    reason = without_effect(draft.config).get(path, "") if draft.config is not None else ""
    return f"Has no effect now: {reason}" if reason else ""


def caution_words(draft: Draft, path: str) -> str:
    """What to know of an option as it is set now; empty where there is nothing to say."""
    if path == "data.max_length":
        return beyond_context(draft)
    if path == "train.warmup" and draft.config is not None and draft.duration is not None:
        return warmup_words(draft.config, draft.duration.num_steps)
    if path == "eval.share":
        return _too_few_held_back(draft)
    if path == "train.optimizer" and draft.config is not None:
        return optimizer_words(draft.config, on_gpu=not draft.device.is_cpu)
    return ""


def _too_few_held_back(draft: Draft) -> str:
    """That an evaluation after the run could not tell whether it is better, and the share with which it could."""
    if draft.config is None or not draft.num_rows:
        return ""
    held = num_held_back(draft.num_rows, draft.config.eval.share)
    share = math.ceil(100 * FEWEST_ROWS / draft.num_rows) / 100
    if not 0 < held < FEWEST_ROWS or share > MOST_HELD_BACK:
        return ""
    rows = "1 row is" if held == 1 else f"{held} rows are"
    return f"{rows} too few to tell whether it is better: {share:g} holds back {num_held_back(draft.num_rows, share)}"


def nothing_changed(advice: Advice, kind: str) -> tuple[str, str]:
    """Heading and words where “Make it fit” (`kind` is fit) or “Use the memory” (use) has nothing to change."""
    words = " ".join(advice.sentences)
    if advice.fits:
        return "Nothing to change", words
    if kind == "use":
        return "No memory is left to use", f"{words} “Make it fit” looks for what helps."
    return "It cannot be made to fit", words


def recipe_text(draft: Draft) -> str:
    """The settings as YAML and as a command, each with a copy button; empty while something is wrong."""
    if draft.config is None:
        return '<p class="q-small">Shown again once all settings are right.</p>'
    yaml = draft.config.to_yaml(only_changed=True)
    command = command_line(draft.config)
    return (
        f'<div class="q-text-pair">{_copyable("As YAML (what differs from the defaults)", yaml)}{_copyable("As a command", command)}</div>'
    )


def command_line(config: RunConfig) -> str:
    """The `train` command that gives these settings."""
    words = ["python", "app.py", "train"]
    for path, (value, _) in config.differences(RunConfig()).items():
        given = _flag(path, value, config)
        words += [f"--{path}={given}"] if given.startswith("-") else [f"--{path}", given]  # else it would be taken for a flag
    return shlex.join(words)


def _flag(path: str, value: object, config: RunConfig) -> str:
    if path in ("data.sources", "data.mapping"):
        import json

        section, name = path.split(".")
        return json.dumps(config.to_nested()[section][name], ensure_ascii=False)
    if isinstance(value, tuple):
        return ("\n" if path == "eval.probes" else ",").join(map(str, value))
    return "none" if value is None else str(value)


def _copyable(title: str, text: str) -> str:
    return (
        f'<div class="q-snippet"><div class="q-snippet-head"><span>{escape(title)}</span>'
        f'<button type="button" class="q-button q-copy" data-copy="{escape(text)}">Copy</button></div><pre>{escape(text)}</pre></div>'
    )
