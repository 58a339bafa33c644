"""The form against the declarations: every option stands on the page exactly once, and a new line is enough for a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from qlora_ui.base.errors import SettingsError
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.ui.app import build
from qlora_ui.ui.form import Form
from qlora_ui.ui.service import Service

ROOT = Path(__file__).resolve().parents[2]

ONE_LINE = """
import argparse, json, sys
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

line = '    beta: float = option(0.9, "Memory of the optimizer.", label="First beta", to="sft.adam_beta1", ge=0, le=1)\\n'

class WithOneLineMore(SourceFileLoader):
    def get_code(self, fullname):
        return compile(Path(self.path).read_text(encoding="utf-8") + line, self.path, "exec")

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        file = str(Path(path[0]) / "train.py") if name == "qlora_ui.settings.sections.train" else ""
        return spec_from_file_location(name, file, loader=WithOneLineMore(name, file)) if file else None

sys.meta_path.insert(0, Finder)

from qlora_ui.cli.config_flags import add_config_flags
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.reference import render_reference
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import upstream_arguments
from qlora_ui.ui.app import build
from qlora_ui.ui.service import Service

blocks = build(Service(Workspace.at(sys.argv[1])))
parser = argparse.ArgumentParser()
add_config_flags(parser)
config = RunConfig.parse({"train": {"beta": 0.5}})
print(json.dumps({
    "controls": sum(block.elem_id == "train-beta" for block in blocks.blocks.values()),
    "flag": "--train.beta" in parser.format_usage() or any("--train.beta" in action.option_strings for action in parser._actions),
    "yaml": "beta: 0.5" in config.to_yaml(only_changed=True),
    "docs": "`train.beta`" in render_reference(),
    "upstream": upstream_arguments(config, "sft")["adam_beta1"],
}))
"""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> gr.Blocks:
    return build(Service(Workspace.at(tmp_path_factory.mktemp("form") / "workspace")))


def test_every_option_stands_on_the_page_exactly_once(blocks: gr.Blocks) -> None:
    ids = Counter(getattr(block, "elem_id", None) for block in blocks.blocks.values())
    assert {option.dom_id: ids[option.dom_id] for option in option_by_path().values()} == {
        option.dom_id: 1 for option in option_by_path().values()
    }


def test_no_id_stands_twice(blocks: gr.Blocks) -> None:
    ids = Counter(block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None))
    assert [name for name, count in ids.items() if count > 1] == []


def test_one_pulse_and_no_public_handler(blocks: gr.Blocks) -> None:
    assert [name for number, name in blocks.answers if name == "news"] == ["news"]
    assert not any(isinstance(block, gr.Timer) for block in blocks.blocks.values())
    public = [fn.api_name for fn in blocks.fns.values() if fn.api_visibility == "public" and fn.api_name]
    assert public == []


def test_an_option_in_one_line_appears_everywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_LINE, str(tmp_path / "workspace")], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["controls"] == 1
    assert found["flag"]
    assert found["yaml"]
    assert found["docs"]
    assert found["upstream"] == 0.5


@pytest.fixture
def form() -> Form:
    """A form with every option, outside of any page."""
    made = Form()
    with gr.Blocks():
        for path in option_by_path():
            made.place(path)
    return made


def _shown(form: Form, config: RunConfig) -> dict[Any, Any]:
    return {control.input: update["value"] for control, update in zip(form.controls.values(), form.show(config), strict=True)}


def test_a_config_goes_through_the_controls_unchanged(form: Form) -> None:
    config = RunConfig().changed({"lora.rank": 7, "lora.alpha": 9, "lora.targets": "q_proj,v_proj", "eval.probes": "Who are you?"})
    assert form.read(_shown(form, config)) == config
    assert form.read(_shown(form, RunConfig())) == RunConfig()


def test_reading_reports_all_problems_at_once(form: Form) -> None:
    data = _shown(form, RunConfig())
    data[form.controls["lora.rank"].input] = -1
    data[form.controls["train.epochs"].input] = None
    data[form.controls["lora.targets"].input] = []
    with pytest.raises(SettingsError) as caught:
        form.read(data)
    assert {problem.where for problem in caught.value.problems} >= {"lora.rank", "train.epochs"}


def test_an_option_placed_twice_is_refused(form: Form) -> None:
    with gr.Blocks(), pytest.raises(ValueError, match="twice"):
        form.place("lora.rank")
