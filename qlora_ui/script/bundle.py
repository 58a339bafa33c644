"""A folder that trains without this app: program or TRL configuration, pinned requirements, the run's own rows."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import write_text
from qlora_ui.catalog.templates import template_named
from qlora_ui.estimate.precision import compute_dtype
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.models.catalogue import public_name
from qlora_ui.runs.events import Planned
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.script.render import ScriptFacts, as_one_program, render_script
from qlora_ui.script.trl_yaml import render_trl_yaml
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.run_config import RunConfig

ScriptFormat = Literal["script", "trl-yaml"]
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
DATA_ENDINGS = (".jsonl", ".parquet")
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"


def write_bundle(
    config: RunConfig,
    data: Path,
    out: Path,
    form: ScriptFormat,
    *,
    gpu: GpuState | None,
    run: RunDir | None = None,
    rows_in_one: float = 1.0,
    replaces: bool = False,
) -> Path:
    """Write the folder `out` from a run's `data/` folder and return the file to start with.

    `gpu` is this machine's, for the YAML, which cannot look itself as the program does; `rows_in_one` is how many conversations
    a packed row would hold where there is no run that tells. Raises RunError where the run has no data yet, and QloraUiError
    where `out` cannot be written, or holds something that this does not replace.
    """
    if not (data / "train.tokens.parquet").is_file():
        raise RunError("This run has no rows yet.", why="It has not come to its data.", fix="Start it first.", code="no-data")
    if config.lora.start_from:
        raise QloraUiError(
            "The program cannot start from an adapter.",
            why="It trains a fresh one, and its curve would be another",
            fix="Export the run that it started from",
            where="lora.start_from",
            code="script-start-from",
        )
    facts = _facts(config, data, run, rows_in_one)
    with _new_folder(out, replaces=replaces):
        write_text(out / "requirements.txt", requirements())
        if config.model.template != "auto":
            write_text(out / "chat_template.jinja", _chat_template(config.model.template, data, run))
        if form == "script":
            shutil.copytree(data, out / "data", ignore=lambda _, names: [name for name in names if not name.endswith(DATA_ENDINGS)])
            start = out / "train.py"
            write_text(start, render_script(config, facts))
            return start
        (out / "tokens").mkdir()
        shutil.copyfile(data / "train.tokens.parquet", out / "tokens" / "train.parquet")
        if facts.has_eval:
            # The name tells the datasets library which split it is.
            shutil.copyfile(data / "eval.tokens.parquet", out / "tokens" / "test.parquet")
        start = out / "trl_sft.yaml"
        on_gpu = gpu is not None and config.launch.device != "cpu"
        dtype = compute_dtype(config.quant, is_cpu=not on_gpu, supports_bf16=gpu is not None and gpu.supports_bf16)
        write_text(start, render_trl_yaml(config, facts, on_gpu=on_gpu, compute_dtype=dtype))
        return start


@contextlib.contextmanager
def _new_folder(out: Path, *, replaces: bool) -> Iterator[None]:
    """Make `out` for what is written inside, and take that away again where it could not be written; raises QloraUiError."""
    if replaces:
        shutil.rmtree(out, ignore_errors=True)
    is_ours = False
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise QloraUiError(f"{out.name} is not empty.", fix="Give a new folder.", where="--out", code="out-not-empty")
        out.mkdir(parents=True, exist_ok=True)
        is_ours = True
        yield
    except OSError as error:
        for path in out.iterdir() if is_ours else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        why = error.strerror or str(error)
        raise QloraUiError(f"{out} cannot be written.", why=why, fix="Give another place.", where="--out", code="out") from None


def requirements() -> str:
    """The pinned lines of the packages that the program imports."""
    lines = _REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if re.split(r"[=<>~ ]", line, maxsplit=1)[0] in PACKAGES)


def _chat_template(name: str, data: Path, run: RunDir | None) -> str:
    """The template as the run's tokenizer got it, with its own end token where it does not know the template's; the program looks too.

    It lies beside the rows; runs of earlier versions have it beside their adapter only.
    """
    for folder in (data, *([run.adapter] if run else [])):
        written = folder / "chat_template.jinja"
        if written.is_file():
            return written.read_text(encoding="utf-8")
    return template_named(name).jinja


def _facts(config: RunConfig, data: Path, run: RunDir | None, rows_in_one: float) -> ScriptFacts:
    has_eval = (data / "eval.tokens.parquet").is_file()
    num_rows = _num_rows(data / "train.jsonl")
    events = read_events(run.journal_path) if run is not None else []
    planned = next((event for event in reversed(events) if isinstance(event, Planned)), None)
    if planned is not None:
        rows_in_one = max(num_rows / planned.num_train_rows, 1.0) if planned.packed else 1.0
    plan = intervals(as_one_program(config, rows_in_one), num_rows, _num_rows(data / "eval.jsonl"))
    if planned is not None and not planned.packed:
        plan = replace(plan, num_steps=planned.num_steps, eval_every=planned.eval_every, save_every=planned.save_every)
    template = None if config.model.template == "auto" else template_named(config.model.template).end
    return ScriptFacts(public_name(config.model.id), plan, has_eval, template, run.id if run else "", rows_in_one)


def _num_rows(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
