"""After the run with the built-in model: everything that takes minutes, and the network once. Not part of the ordinary tests:

    QLORA_UI_LONG=1 python -m pytest tests/tiny/test_demo_after_the_run.py

QLORA_UI_DEMO_WORKSPACE names a workspace with a finished run of the demo preset, trained with the same OMP_NUM_THREADS (sums over
two threads differ in the eighth digit from those over one); without it one is trained first. With requirements-gguf.txt installed
the GGUF files are read by llama.cpp, else by transformers.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from exported import files_of, private_parts

from qlora_ui.cli import main
from qlora_ui.engine.exports.export import export_run
from qlora_ui.engine.exports.turns import sample_conversations, turn_texts
from qlora_ui.runs.events import StepLogged
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.registry import list_runs
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("QLORA_UI_LONG"), reason="minutes of work and a download: set QLORA_UI_LONG=1"),
]
Demo = tuple[Workspace, RunDir]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    given = os.environ.get("QLORA_UI_DEMO_WORKSPACE")
    workspace = Workspace.at(Path(given) if given else tmp_path_factory.mktemp("demo"))
    if not given:
        assert main(["train", "--preset", "demo", "--workspace", str(workspace.root), "--json"]) == 0
    run = next(run for run in list_runs(workspace) if (run.adapter / "adapter_model.safetensors").is_file())
    return workspace, run


def test_the_receipt_takes_less_than_five_minutes(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["evaluate", "--run", demo[1].id, "--workspace", str(demo[0].root), "--json"]) == 0
    assert time.monotonic() - began < 300
    result = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in result["scores"] if "loss" in row] == [row["variant"] for row in result["scores"]]
    assert result["verdict"]["kind"] == "better"
    assert result["logit_difference"]["merged-dequantized"]["max"] < 0.01 < result["logit_difference"]["merged-original"]["max"]


# 8 bits are other weights: how many answers stay is what the check says, not what it promises.
@pytest.mark.parametrize(
    ("form", "least"), [("adapter", 20), ("merged-dequantized", 19), ("gguf-f16", 19), ("gguf-q8_0", 1), ("ollama", 1)]
)
def test_it_answers_as_the_chat_does(demo: Demo, tmp_path: Path, form: str, least: int) -> None:
    result = export_run(demo[1], form, demo[0], tmp_path / "out")
    assert result.check is not None and result.check.num_prompts == 20 and result.check.num_equal >= least, result.note
    if "gguf" in form:
        assert result.check.reader == ("llama.cpp" if find_spec("llama_cpp") else "transformers")
    _assert_nothing_private(tmp_path / "out", demo[0])


@pytest.mark.parametrize("form", ["merged-original", "gguf-lora", "script", "trl-yaml"])
def test_other_forms_hold_nothing_private(demo: Demo, tmp_path: Path, form: str) -> None:
    workspace, run = demo
    if form in ("script", "trl-yaml"):
        words = ["--run", run.id, "--format", form, "--out", str(tmp_path / "out"), "--workspace", str(workspace.root), "--json"]
        assert main(["script", *words]) == 0
    else:
        export_run(run, form, workspace, tmp_path / "out", num_prompts=0)
    _assert_nothing_private(tmp_path / "out", workspace)


def test_the_modelfile_writes_what_the_tokenizer_writes(demo: Demo) -> None:
    from qlora_ui.engine.base_model import ensure_model
    from qlora_ui.engine.tokenizer import load_tokenizer

    tokenizer: Any = load_tokenizer(ensure_model(demo[1].config().model, demo[0]), "auto")
    texts = turn_texts(tokenizer)
    conversations = sample_conversations(can_greet=texts.greeting is not None)
    turns = [[message.as_dict() for message in messages] for messages in conversations]
    expected = [tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for messages in turns]
    assert len(conversations) == 20 and [texts.render(messages) for messages in conversations] == expected


def test_the_program_trains_in_an_environment_of_its_own(demo: Demo, tmp_path: Path) -> None:
    workspace, run = demo
    out = tmp_path / "program"
    assert main(["script", "--run", run.id, "--out", str(out), "--workspace", str(workspace.root), "--json"]) == 0
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "QLORA_UI", "VIRTUAL_ENV"))}
    clean |= {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "venv", "fresh"], cwd=out, env=clean, check=True)
    python = str(out / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=out, env=clean, check=True)
    assert subprocess.run([python, "-c", "import qlora_ui"], cwd=out, env=clean, check=False, capture_output=True).returncode != 0
    model = next(workspace.models.iterdir())
    subprocess.run([python, "train.py", str(model)], cwd=out, env={**clean, "HF_HUB_OFFLINE": "1"}, check=True)
    history = json.loads((out / "history.json").read_text(encoding="utf-8"))
    ours = [event.loss for event in read_events(run.journal_path) if isinstance(event, StepLogged)]
    assert [row["loss"] for row in history if "loss" in row] == ours


def _assert_nothing_private(folder: Path, workspace: Workspace) -> None:
    canaries = [str(workspace.root), str(folder.parent), str(Path.home()) + "/", f"/{getpass.getuser()}/"]
    canaries += [host] if len(host := socket.gethostname()) > 7 else []  # a short name stands in weights by chance
    assert private_parts(files_of(folder), canaries) == []
    for file in folder.glob("*.gguf"):
        _assert_named_after_the_model(file)


def _assert_named_after_the_model(file: Path) -> None:
    """llama.cpp's converter makes up names from folders: those in the file must be the base's."""
    from gguf import GGUFReader

    found = {name: field.contents() for name, field in GGUFReader(file).fields.items() if name.startswith("general.")}
    assert str(found["general.name"]).replace(" ", "-").lower() == "smollm2-135m-instruct-tuned"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
    texts = {name.rpartition(".")[2] for name, value in found.items() if isinstance(value, str)}
    assert texts <= {"architecture", "type", "name", "finetune", "basename", "size_label", "license", "organization", "repo_url"}
