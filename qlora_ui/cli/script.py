"""`app.py script`: a run or preset as a program on plain transformers, peft and trl."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from qlora_ui.base.errors import QloraUiError
from qlora_ui.cli.config_flags import add_config_flags, all_at_once, config_from, given_settings, refuse_settings_beside, write_settings
from qlora_ui.hardware.gpu import read_gpus
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.script.bundle import write_bundle
from qlora_ui.script.read_foreign import read_foreign
from qlora_ui.settings.run_config import RunConfig

HELP = "write train.py (or YAML for “trl sft”) with pinned requirements and the data, for use without this app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, or settings like those of `train`."""
    parser.add_argument("--run", metavar="RUN", help="the run to write down; “latest” is the newest")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--format",
        choices=("script", "trl-yaml", "settings"),
        default="script",
        help="train.py, trl_sft.yaml, or settings.yaml for “train --config” (default script)",
    )
    parser.add_argument("--from", dest="foreign", metavar="FILE", help="settings from a YAML file of TRL, axolotl or LLaMA-Factory")
    parser.set_defaults(replaces=False)
    add_config_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what to start."""
    workspace = Workspace.at(arguments.workspace)
    out = Path(arguments.out).expanduser().resolve()
    if sum(map(bool, (arguments.run, arguments.preset, arguments.config, arguments.foreign))) > 1:
        raise QloraUiError("There is more than one source of settings.", fix="Give --run, --preset, --config or --from.", code="usage")
    if arguments.run:
        refuse_settings_beside("--run", arguments, "A run is written down with its own settings.", "edit what is written.")
    if arguments.format == "settings":
        return _write_settings(arguments, workspace, out)
    if arguments.run:
        chosen = find_run(workspace, arguments.run)
        start = _write(arguments, chosen.config(), chosen.data, out, chosen)
    else:
        config = _settings(arguments, workspace)[0]
        with tempfile.TemporaryDirectory(dir=workspace.temp) as folder:
            data, rows_in_one = _prepare(config, workspace, Path(folder))
            start = _write(arguments, config, data, out, None, rows_in_one=rows_in_one)
    command = "python train.py" if arguments.format == "script" else "trl sft --config trl_sft.yaml"
    if arguments.json:
        print(json.dumps({"path": str(start), "folder": str(out), "command": command}, ensure_ascii=False))
    else:
        print(f"{start}\nIn {out}: pip install -r requirements.txt && {command}")
    return 0


def _settings(arguments: argparse.Namespace, workspace: Workspace) -> tuple[RunConfig, dict[str, str]]:
    """The settings that the flags mean, and what of another program's file has no effect here."""
    if arguments.run:
        return find_run(workspace, arguments.run).config(), {}
    if not arguments.foreign:
        return config_from(arguments, workspace, default_preset="demo"), {}
    path = Path(arguments.foreign)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QloraUiError(f"{path.name} cannot be read.", why=str(error), fix="Give a YAML file.", where="--from", code="usage") from None
    given = given_settings(arguments)
    with all_at_once(given):
        foreign = read_foreign(text, path.name)
    if not arguments.json:
        for key, reason in foreign.ignored.items():
            print(f"{key}: {reason}", file=sys.stderr)
    return foreign.config.changed(given), foreign.ignored


def _write_settings(arguments: argparse.Namespace, workspace: Workspace, out: Path) -> int:
    config, ignored = _settings(arguments, workspace)
    path = out / "settings.yaml"
    if path.exists():
        raise QloraUiError(f"{path} is there already.", fix="Give a new folder.", where="--out", code="out-not-empty")
    write_settings(path, config, "--out")
    command = f'python app.py train --config "{path}"' if " " in str(path) else f"python app.py train --config {path}"
    print(json.dumps({"path": str(path), "command": command, "ignored": ignored}, ensure_ascii=False) if arguments.json else command)
    return 0


def _write(
    arguments: argparse.Namespace, config: RunConfig, data: Path, out: Path, chosen: RunDir | None, *, rows_in_one: float = 1.0
) -> Path:
    gpu, replaces = next(iter(read_gpus()), None), arguments.replaces
    return write_bundle(config, data, out, arguments.format, gpu=gpu, run=chosen, rows_in_one=rows_in_one, replaces=replaces)


def _prepare(config: RunConfig, workspace: Workspace, folder: Path) -> tuple[Path, float]:
    """Rows of settings that were never run, and how many of them a packed row would hold: the same functions that a run calls."""
    from qlora_ui.engine.base_model import ensure_model
    from qlora_ui.engine.build import rows_in_one
    from qlora_ui.engine.dataset import build_datasets
    from qlora_ui.engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ensure_model(config.model, workspace), config.model.template)
    prepared = RunDir(folder)
    data = build_datasets(config, workspace, tokenizer, prepared)
    return prepared.data, rows_in_one(config, data.train)
