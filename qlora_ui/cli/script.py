"""`app.py script`: a run or preset as a program on plain transformers, peft and trl."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from qlora_ui.base.errors import QloraUiError
from qlora_ui.cli.config_flags import add_config_flags, config_from
from qlora_ui.hardware.gpu import read_gpus
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.script.bundle import write_bundle
from qlora_ui.settings.run_config import RunConfig

HELP = "write train.py (or YAML for “trl sft”) with pinned requirements and the data, for use without this app"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run, or settings like those of `train`."""
    parser.add_argument("--run", metavar="RUN", help="the run to write down; “latest” is the newest")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--format", choices=("script", "trl-yaml"), default="script", help="train.py, or trl_sft.yaml (default script)")
    add_config_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say what to start."""
    workspace = Workspace.at(arguments.workspace)
    out = Path(arguments.out).expanduser().resolve()
    if arguments.run and (arguments.preset or arguments.config):
        raise QloraUiError("A run has its own settings.", fix="Give --run, or --preset, or --config.", where="--run", code="usage")
    if arguments.run:
        chosen = find_run(workspace, arguments.run)
        start = _write(arguments, chosen.config(), chosen.data, out, chosen)
    else:
        config = config_from(arguments, workspace, default_preset="demo")
        with tempfile.TemporaryDirectory(dir=workspace.temp) as folder:
            start = _write(arguments, config, _prepare(config, workspace, Path(folder)), out, None)
    command = "python train.py" if arguments.format == "script" else "trl sft --config trl_sft.yaml"
    if arguments.json:
        print(json.dumps({"path": str(start), "folder": str(out), "command": command}, ensure_ascii=False))
    else:
        print(f"{start}\nIn {out}: pip install -r requirements.txt && {command}")
    return 0


def _write(arguments: argparse.Namespace, config: RunConfig, data: Path, out: Path, chosen: RunDir | None) -> Path:
    cards = read_gpus() if config.launch.device != "cpu" else []
    bf16 = not cards or (cards[0].compute_capability or (8, 0)) >= (8, 0)
    return write_bundle(config, data, out, arguments.format, on_gpu=bool(cards), bf16=bf16, run=chosen)


def _prepare(config: RunConfig, workspace: Workspace, folder: Path) -> Path:
    """Rows of settings that were never run: the same functions that a run calls."""
    from qlora_ui.engine.base_model import ensure_model
    from qlora_ui.engine.dataset import build_datasets
    from qlora_ui.engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ensure_model(config.model, workspace), config.model.template)
    prepared = RunDir(folder)
    build_datasets(config, workspace, tokenizer, prepared)
    return prepared.data
