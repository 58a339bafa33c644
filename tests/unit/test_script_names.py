"""What is written for others: the name of the base, for a folder may be called anything, and the batch of several cards."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from qlora_ui.hardware.gpu import GpuState
from qlora_ui.models.catalogue import public_name
from qlora_ui.script.bundle import write_bundle
from qlora_ui.script.render import ScriptFacts, render_script
from qlora_ui.script.trl_yaml import render_trl_yaml
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.run_config import RunConfig

USUAL = render_script(RunConfig(), ScriptFacts("owner/name", intervals(RunConfig(), 10, 0), has_eval=False))


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("C:\\users\\me\\unsloth-8b", "unsloth-8b"),
        ('/models/a"""; import os; os.system("echo hi"); """', 'a"""; import os; os.system("echo hi"); """'),
        ("/models/two\nlines: [1", "two lines: [1"),
        ("/models/🦙 8b/", "🦙 8b"),
        ("builtin:smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("owner/name", "owner/name"),
    ],
)
def test_the_name_of_a_base_is_a_text_and_nothing_else(model_id: str, name: str) -> None:
    config = RunConfig()
    facts = ScriptFacts(public_name(model_id), intervals(config, 10, 0), has_eval=False)
    program = ast.parse(render_script(config, facts))
    assert [type(line) for line in program.body] == [type(line) for line in ast.parse(USUAL).body]
    model = next(line.value for line in program.body if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "MODEL")
    assert isinstance(model, ast.IfExp) and ast.literal_eval(model.orelse) == name
    settings = yaml.safe_load(render_trl_yaml(config, facts, on_gpu=False, compute_dtype="float32"))
    assert settings["model_name_or_path"] == name


def test_what_several_cards_shared_of_a_batch_is_added_up_by_one_process() -> None:
    launch = {"where": "process", "num_processes": 2, "num_machines": 3, "machine_rank": 1, "sharding": "fsdp"}
    changes = {f"launch.{name}": value for name, value in launch.items()}
    config = RunConfig().changed({**changes, "train.accumulation": 2, "quant.storage": "bfloat16"})
    facts = ScriptFacts("owner/name", intervals(config, 1000, 0), has_eval=False)
    program = render_script(config, facts)
    settings = yaml.safe_load(render_trl_yaml(config, facts, on_gpu=True, compute_dtype="bfloat16"))
    assert "gradient_accumulation_steps=12" in program and settings["gradient_accumulation_steps"] == 12
    assert "among 6 processes" in (ast.get_docstring(ast.parse(program)) or "") and "processes" not in USUAL


def test_what_shared_a_packed_row_is_added_up() -> None:
    """A row of its own for each conversation would else make steps of a tenth of the conversations, and ten times as many."""
    config = RunConfig().changed({"train.accumulation": 2})
    facts = ScriptFacts("owner/name", intervals(config, 1000, 0), has_eval=False, run_id="a-run", rows_in_one=9.6)
    program, written = render_script(config, facts), render_trl_yaml(config, facts, on_gpu=True, compute_dtype="bfloat16")
    assert "gradient_accumulation_steps=19" in program and yaml.safe_load(written)["gradient_accumulation_steps"] == 19
    assert "packed about 9.6 conversations" in (ast.get_docstring(ast.parse(program)) or "") and "# The run packed about 9.6" in written
    never_run = render_script(config, replace(facts, run_id=""))
    assert "would pack about 9.6" in never_run and "run packed" not in never_run
    assert "packed about" not in USUAL and "would pack" not in USUAL


@pytest.mark.parametrize(
    ("wanted", "capability", "says"),
    [("auto", (7, 5), (False, True, False)), ("auto", (8, 6), (True, False, False)), ("cpu", (8, 6), (False, False, True))],
)
def test_the_yaml_trains_where_and_in_the_numbers_that_the_run_would(
    wanted: str, capability: tuple[int, int], says: tuple[bool, ...], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tokens.parquet").write_bytes(b"PAR1")
    gpu = GpuState(0, "GPU-1", "A card", 1, 0, None, compute_capability=capability)
    config = RunConfig().changed({"launch.device": wanted})
    written = yaml.safe_load(write_bundle(config, tmp_path / "data", tmp_path / "out", "trl-yaml", gpu=gpu).read_text(encoding="utf-8"))
    assert tuple(written.get(name, False) for name in ("bf16", "fp16", "use_cpu")) == says
