"""Ways to take a run away, as cards by purpose: what it is, what it takes, how to use what comes out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.exports import EXPORT_FORMS, SCRIPTS
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import Status
from qlora_ui.ui.action import act_button
from qlora_ui.ui.background import Progress
from qlora_ui.ui.markup import escape, middle_cut
from qlora_ui.ui.views.background_view import progress_html
from qlora_ui.ui.views.words import TO_TRASH, ago

NOTHING = (
    '<div class="q-empty"><h2>Nothing to take away yet</h2><p>When a run has saved something, you can take it as an adapter, '
    "a whole model, a file for llama.cpp or Ollama, or as a program that trains it again elsewhere.</p></div>"
)


@dataclass(frozen=True, slots=True)
class Card:
    """One export."""

    form: str
    title: str
    about: str
    command: str
    """What uses the result, as a person types it: GGUF and programs in the exported folder, others beside it."""
    size_bytes: int | None = None
    memory_bytes: int | None = None
    path: str = ""
    """Where the finished one lies; empty while there is none."""
    note: str = ""
    """Of the last one: how it compared with the chat."""
    sign: str = ""
    """✓ where it answers as the chat does; other signs say less."""
    is_earlier: bool = False
    """Whether the run has learned on since the last one was made."""
    problem: str = ""
    """Why it cannot be made here; then there is no button."""
    needed: str = ""
    """Which runs have it as their base, in a sentence."""


GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Use it in Python", ("adapter", "merged-dequantized", "merged-original")),
    ("Run it in llama.cpp or Ollama", ("gguf-q8_0", "gguf-f16", "gguf-lora", "ollama")),
    ("Train it again elsewhere", ("script", "trl-yaml")),
)
COMMANDS: Mapping[str, str] = {
    "adapter": 'PeftModel.from_pretrained(base, "adapter")',
    "merged-dequantized": "vllm serve ./merged-dequantized",
    "merged-original": "vllm serve ./merged-original",
    "gguf-q8_0": 'llama-cli -m "NAME-q8_0.gguf" -cnv',
    "gguf-f16": 'llama-quantize "NAME-f16.gguf" "NAME-q4_k_m.gguf" Q4_K_M',
    "gguf-lora": 'llama-cli -m base.gguf --lora "NAME-lora-f16.gguf"',
    "ollama": "ollama create mine && ollama run mine",
    "script": "pip install -r requirements.txt && python train.py",
    "trl-yaml": "pip install -r requirements.txt && trl sft --config trl_sft.yaml",
}
"""NAME stands for what the files of the fine-tune are named by."""


ABSENT = (
    "AWQ and GPTQ are not offered. The libraries that write them and are kept up, llm-compressor and GPTQModel, want other versions of "
    "transformers and torch than this app works with; installed somewhere of their own, they take the whole model from here. To serve a "
    "small model, take the 8-bit GGUF; for vLLM, take the whole model and let vLLM quantize it when it loads (--quantization "
    "fp8_per_tensor, or bitsandbytes for 4 bits)."
)
_TITLES = {**{form.name: form.title for form in EXPORT_FORMS}, **{name: title for name, (title, _) in SCRIPTS.items()}}
EARLIER = "The run has learned on since: this is its adapter as it was."
SHARE = "python app.py push --run {run} --to YOU/NAME {workspace}"


def source_words(view: RunView) -> str:
    """What of a run that is not over would be taken away; empty where it is its result."""
    step = f"{view.checkpoints[-1].step:,}" if view.checkpoints else ""
    so_far = f"what it had learned at step {step}, its last checkpoint"
    if view.status.is_live:
        held = "the adapter as it was when the run last ended" if view.has_adapter else so_far
        return f"The run is training. What is made here holds {held}."
    if not view.has_adapter:
        return f"The run has no finished adapter. What is made here holds {so_far}."
    if view.status in (Status.PAUSED, Status.CRASHED, Status.QUEUED):
        return "The run went on after it had ended once. What is made here holds its adapter as it was then."
    return ""


def ended_words(begun: Mapping[str, float], *, made: Collection[str] = ()) -> str:
    """What became of exports that were begun then, by form, and ended with the app; `made` are the forms that lie there from earlier."""
    told = []
    for form, at in begun.items():
        title, left = _TITLES.get(form, form), "What lies there is the one from before" if form in made else "Nothing of it is kept"
        told.append(f"The export “{title}” that was begun {ago(at)} ended with the app before it was done. {left}; make it again.")
    return " ".join(told)


def beside_words(busy: str, *, has_card: bool) -> str:
    """How exports are made while somebody has a model in memory, said before one is begun; `busy` says who."""
    how = "Whole models are made on the processor meanwhile" if has_card else "What is made meanwhile slows it"
    return f"{busy} {how}, and nothing is compared with the chat. Make it again later to have that done."


def command_for(form: str, name: str) -> str:
    """What uses an export whose files are named by `name`."""
    return COMMANDS[form].replace("NAME", name)


def work_key(run_id: str, form: str) -> str:
    """What a piece of export work is for."""
    return f"{run_id}|{form}"


def packing_key(run_id: str, form: str) -> str:
    """What the packing of an export is for."""
    return f"{work_key(run_id, form)}|pack"


def exports_html(
    cards: Sequence[Card],
    run_id: str,
    progress: Progress,
    picker: str,
    *,
    names: Mapping[str, str],
    workspace: str,
    source: str = "",
    ended: str = "",
) -> str:
    """All cards in their groups; work in hand stands in its card, that of another run on top.

    `names` are the runs' names by id, `workspace` is the flag that commands need to find them, `source` says what of the run is taken,
    `ended` which exports ended with the app.
    """
    by_form = {card.form: card for card in cards}
    of_run, working, _ = _parts(progress)
    work = _running(by_form, run_id, progress, names)
    groups = []
    for title, forms in GROUPS:
        own = [
            _card(by_form[form], run_id, work if form == working and of_run == run_id else "", is_busy=progress.is_running)
            for form in forms
            if form in by_form
        ]
        if own:
            groups.append(f'<section><h2 class="q-h2">{title}</h2><div class="q-export-grid">{"".join(own)}</div></section>')
    # A folder that was renamed may have spaces in its name.
    quoted = run_id if re.fullmatch(r"[\w.-]+", run_id) else f'"{run_id}"'
    share = (
        '<section><h2 class="q-h2">Share it</h2><article class="q-card q-export" id="export-push"><p class="q-small">Uploads the adapter '
        "with its card to the Hugging Face Hub, private unless you say --public. Type it in a terminal; it takes the token of your own "
        f"Hub login.</p>{_command(SHARE.format(run=quoted, workspace=workspace).strip())}</article></section>"
    )
    absent = f'<section><h2 class="q-h2">Not here</h2><p class="q-small q-export-absent">{escape(ABSENT)}</p></section>'
    body = "".join(groups) + share + absent
    told = f'<p class="q-note" id="export-source">{escape(source)}</p>' if source else ""
    if ended:
        forget = act_button("Do without", "forget-ended", run_id, look="link", title="Do without these exports, and show this no more")
        told += f'<p class="q-note q-note-warn" id="export-ended">{escape(ended)} {forget}</p>'
    top = work if of_run != run_id else ""
    return f'<div class="q-results"><h1 class="q-h1">Take it with you</h1>{picker}{told}{top}{body}</div>'


def _running(by_form: Mapping[str, Card], run_id: str, progress: Progress, names: Mapping[str, str]) -> str:
    """The work in hand, of whichever run; how it failed only where it belongs."""
    of_run, form, is_packing = _parts(progress)
    if form not in by_form or (of_run != run_id and not progress.is_running):
        return ""
    of_other = f" of {names.get(of_run, of_run)}" if of_run != run_id else ""
    return progress_html(progress, f"{'Packing' if is_packing else 'Making'}: {by_form[form].title}{of_other}")


def _parts(progress: Progress) -> tuple[str, str, bool]:
    """The run and the form that the work in hand is for, and whether it only packs."""
    run_id, form, pack = [*progress.key.split("|"), "", ""][:3]
    return run_id, form, bool(pack)


def _command(command: str) -> str:
    copy = f'<button type="button" class="q-link" data-copy="{escape(command)}" aria-label="Copy: {escape(command)}">Copy</button>'
    return f'<div class="q-command"><code>{escape(command)}</code>{copy}</div>'


def _card(card: Card, run_id: str, work: str, *, is_busy: bool) -> str:
    facts = []
    if card.size_bytes is not None:
        facts.append(f"{format_bytes(card.size_bytes)} on the disk")
    if card.memory_bytes is not None:
        facts.append(f"{format_bytes(card.memory_bytes)} of memory to make")
    command, make = _command(card.command), f"Make it: {card.title}"
    problem = f'<p class="q-small">{escape(card.problem)}</p>' if card.problem else ""
    if card.path:
        copy = f'<button type="button" class="q-link" data-copy="{escape(card.path)}">Copy path</button>'
        note = f'<p class="q-small">{escape(f"{card.sign} {card.note}".strip())}</p>' if card.note else ""
        note = f'<p class="q-note q-note-warn q-small">{EARLIER}</p>{note}' if card.is_earlier else note
        again = (
            act_button("Make it again", "export-again", run_id, look="quiet", form=card.form, echo="Starting …")
            if not (is_busy or problem)
            else ""
        )
        delete = _delete_button(card, run_id) if not is_busy else ""
        save = act_button("Download", "download", run_id, form=card.form, look="primary", echo="Packing …") if not is_busy else ""
        foot = (
            f'<p class="q-small q-mono q-export-path">{escape(middle_cut(card.path, 44))} {copy}</p>{note}'
            f'{problem}<div class="q-buttons">{save}{again}{delete}</div>'
        )
    elif problem:
        foot = problem
    else:
        foot = (
            f'<div class="q-buttons">{act_button("Make it", "export-now", run_id, form=card.form, echo="Starting …", title=make)}</div>'
            if not is_busy
            else ""
        )
    return (
        f'<article class="q-card q-export" id="export-{escape(card.form)}"><h3 class="q-h3">{escape(card.title)}</h3>'
        f'<p class="q-small">{escape(card.about)}</p><p class="q-small q-num">{escape(" · ".join(facts))}</p>'
        f"{command}{work}{foot}</article>"
    )


def _delete_button(card: Card, run_id: str) -> str:
    words = f"Delete this export? {TO_TRASH} The run stays. {card.needed}"
    title, ask = f"Delete: {card.title}", {"confirm": words.strip(), "yes": "Delete", "no": "Keep it", "danger": "1"}
    return act_button("Delete", "delete-export", run_id, look="quiet", form=card.form, title=title, **ask)
