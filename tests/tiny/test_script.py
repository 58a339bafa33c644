"""The exported program and TRL configuration train what the app trains, without the app."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fast_models import COMMON, FAMILIES
from jobs import tiny_config, train, write_rows

from qlora_ui.cli import main
from qlora_ui.engine.dataset import build_datasets
from qlora_ui.engine.load import attention_kernel
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.runs.events import EvalLogged, StepLogged
from qlora_ui.runs.journal import read_events
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.script.bundle import ScriptFormat, write_bundle
from qlora_ui.script.render import ScriptFacts, render_script
from qlora_ui.script.trl_yaml import render_trl_yaml
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.presets import list_presets
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.views.run import head_html


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunDir]:
    """A finished run of the tiny model, dropout and checks included."""
    from qlora_ui.engine import job

    workspace = Workspace.at(tmp_path_factory.mktemp("script"))
    config = RunConfig().changed(
        {
            "model.id": str(tiny_model_dir),
            "launch.device": "cpu",
            "data.max_length": 96,
            "train.max_steps": 6,
            "train.batch_size": 2,
            "train.accumulation": 2,
            "train.learning_rate": 0.005,
            "lora.dropout": 0.1,
            "eval.every": 3,
            "output.save_every": 3,
        }
    )
    run = create_run(workspace, config)
    job.run(run.path)
    return workspace, run


def program(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "QLORA_UI_HOME")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_program_gives_the_runs_curve_to_the_last_digit(trained: tuple[Workspace, RunDir], tiny_model_dir: Path, tmp_path: Path) -> None:
    workspace, run = trained
    out = tmp_path / "my script"
    assert main(["script", "--run", run.id, "--out", str(out), "--workspace", str(workspace.root), "--json"]) == 0
    text = (out / "train.py").read_text()
    assert "qlora_ui" not in text and str(tiny_model_dir) not in text and len(text.splitlines()) < 90
    assert {line.split("==")[0] for line in (out / "requirements.txt").read_text().split()} >= {"torch", "trl", "peft", "bitsandbytes"}
    done = program(out, "train.py", str(tiny_model_dir))
    assert done.returncode == 0, done.stderr[-2000:]
    history = json.loads((out / "history.json").read_text())
    events = read_events(run.journal_path)
    ours = [event.loss for event in events if isinstance(event, StepLogged)]
    assert len(ours) == 6
    assert [row["loss"] for row in history if "loss" in row] == ours
    assert [row["eval_loss"] for row in history if "eval_loss" in row] == [event.loss for event in events if isinstance(event, EvalLogged)]
    norms = [event.grad_norm for event in events if isinstance(event, StepLogged)]
    assert [row["grad_norm"] for row in history if "grad_norm" in row] == pytest.approx(norms, rel=1e-6)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_trl_trains_from_the_yaml(trained: tuple[Workspace, RunDir], tiny_model_dir: Path, tmp_path: Path) -> None:
    workspace, run = trained
    out = tmp_path / "trl"
    assert main(["script", "--run", run.id, "--out", str(out), "--format", "trl-yaml", "--workspace", str(workspace.root)]) == 0
    path = out / "trl_sft.yaml"
    path.write_text(path.read_text().replace(f"model_name_or_path: {tiny_model_dir.name}", f"model_name_or_path: {tiny_model_dir}"))
    done = program(out, "-m", "trl.scripts.sft", "--config", "trl_sft.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    state = next((out / "output").glob("checkpoint-6/trainer_state.json"))
    theirs = [row["loss"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]
    ours = [event.loss for event in read_events(run.journal_path) if isinstance(event, StepLogged)]
    # TRL keeps the adapter in bf16, the app in fp32 on a CPU.
    assert theirs == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_trl_parses_every_preset(preset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from trl.scripts.sft import make_parser

    facts = ScriptFacts("owner/model", intervals(preset.config, 1000, 50), True)
    text = render_trl_yaml(preset.config, facts, on_gpu=False, compute_dtype="float32")
    path = tmp_path / "trl_sft.yaml"
    path.write_text(text)
    _, training, model, _ = make_parser().parse_args_and_config(["--config", str(path)])
    assert training.learning_rate == preset.config.train.learning_rate
    assert (model.lora_r, model.load_in_4bit, model.use_peft) == (preset.config.lora.rank, True, True)
    assert yaml.safe_load(text)["eval_strategy"] == "steps"
    compile(render_script(preset.config, facts), "train.py", "exec")


def test_a_folder_with_something_in_it_is_left_alone(trained: tuple[Workspace, RunDir], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.txt").write_text("x")
    words = ["script", "--run", trained[1].id, "--out", str(tmp_path), "--workspace", str(trained[0].root), "--json"]
    assert main(words) == 2
    assert "not empty" in json.loads(capsys.readouterr().out)["error"]["problems"][0]["what"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_that_is_not_named_is_the_apps(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
    settings.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(settings)
    assert model.config._attn_implementation == attention_kernel(tmp_path, RunConfig())


@pytest.mark.parametrize(("attention", "words"), [("auto", 0), ("eager", 1), ("sdpa", 1)])
def test_attention_is_named_where_it_was_chosen(attention: str, words: int) -> None:
    config = RunConfig().changed({"model.attention": attention})
    facts = ScriptFacts("owner/model", intervals(config, 1000, 50), True)
    assert render_script(config, facts).count(f'attn_implementation="{attention}"') == words
    assert "attn_implementation" not in render_script(RunConfig(), facts)
    assert yaml.safe_load(render_trl_yaml(config, facts, on_gpu=False, compute_dtype="float32")).get("attn_implementation") == (
        attention if words else None
    )


@pytest.mark.parametrize("name", ["llama-3", "chatml"])
@pytest.mark.parametrize("has_adapter", [True, False])
def test_the_program_writes_turns_as_the_app_does(
    workspace: Workspace, tiny_model_dir: Path, tmp_path: Path, name: str, has_adapter: bool
) -> None:
    """Also where the model does not know the template's end token."""
    from transformers import AutoTokenizer

    config = RunConfig().changed({"model.id": str(tiny_model_dir), "model.template": name})
    run = create_run(workspace, config)
    ours = load_tokenizer(tiny_model_dir, name)
    if has_adapter:
        ours.save_pretrained(run.adapter)
    run.data.mkdir()
    (run.data / "train.tokens.parquet").write_bytes(b"PAR1")
    write_bundle(config, run.data, tmp_path / "out", "script", gpu=None, run=run)
    if has_adapter:
        assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == ours.chat_template
    program = (tmp_path / "out" / "train.py").read_text(encoding="utf-8")
    lines = program.partition("\ntokenizer = ")[2].partition("\n\n")[0]
    theirs = {"AutoTokenizer": AutoTokenizer, "MODEL": str(tiny_model_dir), "HERE": tmp_path / "out"}
    exec(f"tokenizer = {lines}", theirs)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    tokenizer: Any = theirs["tokenizer"]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == ours.apply_chat_template(turns, tokenize=False)
    assert tokenizer.eos_token == ours.eos_token


@pytest.mark.parametrize("form", ["script", "trl-yaml"])
def test_a_run_without_an_adapter_gives_the_template_as_it_was_used(
    workspace: Workspace, tiny_model_dir: Path, tmp_path: Path, form: ScriptFormat
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    config = RunConfig().changed({"model.id": str(tiny_model_dir), "model.template": "llama-3", "data.sources": [{"id": str(rows)}]})
    run, ours = create_run(workspace, config), load_tokenizer(tiny_model_dir, "llama-3")
    build_datasets(config, workspace, ours, run)
    write_bundle(config, run.data, tmp_path / "out", form, gpu=None, run=run)
    given = (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")
    assert given == ours.chat_template and "<|eot_id|>" not in given
    assert not list((tmp_path / "out").glob("data/*.jinja"))


def test_the_program_of_a_packed_run_takes_as_many_steps(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    changes = {"train__max_steps": None, "train__epochs": 2, "train__packing": "on", "train__batch_size": 1, "train__accumulation": 4}
    view = train(workspace, tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 60), **changes))
    assert view.planned is not None and view.planned.packed
    # The page counts what the user brought: 60 conversations, not the rows that they share.
    assert view.planned.rows_in_words() == f"48 conversations in {view.planned.num_train_rows} rows"
    assert view.planned.num_train_rows < 48 and view.planned.num_held_back == 12 and "48 conversations in" in head_html(view)
    write_bundle(view.run.config(), view.run.data, tmp_path / "out", "script", gpu=None, run=view.run)
    program = (tmp_path / "out" / "train.py").read_text(encoding="utf-8")
    rounds = int(re.search(r"gradient_accumulation_steps=(\d+)", program)[1])  # type: ignore[index]
    num_rows = sum(1 for _ in (view.run.data / "train.jsonl").open("rb"))
    assert rounds > 4 and 2 * math.ceil(num_rows / rounds) == view.planned.num_steps
    # The same settings before any run.
    settings = view.run.path / "config.yaml"
    assert main(["script", "--config", str(settings), "--out", str(tmp_path / "before"), "--workspace", str(workspace.root)]) == 0
    before = (tmp_path / "before" / "train.py").read_text(encoding="utf-8")
    assert f"gradient_accumulation_steps={rounds}," in before and "A run would pack about" in before
