"""Every bad input of the corpus: a typed message with its place, in time and memory, and the app lives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from corpus_path import DATASETS, PRESETS, TEMPLATES, Bad

from qlora_ui.base.errors import ModelError, QloraUiError, SettingsError
from qlora_ui.data.load import inspect
from qlora_ui.data.template_check import check_template
from qlora_ui.engine.lens import Lens
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection

CASES = [pytest.param(bad, id=f"{bad.number}-{bad.name}") for bad in DATASETS]


@pytest.mark.parametrize("bad", CASES)
def test_bad_dataset(bad: Bad, tmp_path: Path, workspace: Workspace, request: pytest.FixtureRequest) -> None:
    path = tmp_path / bad.name
    bad.make(path)
    started = time.monotonic()
    data = DataSection(sources=(str(path),), **bad.data)
    try:
        if bad.data:
            model = request.getfixturevalue("tiny_model_dir")
            report = Lens(workspace).report(RunConfig.parse({"model": {"id": str(model)}, "data": data.model_dump()}))
        else:
            report = inspect(data, workspace)
    except QloraUiError as error:
        assert bad.is_error, error
        told = [(problem.code, problem.sentence()) for problem in error.problems]
        assert all(problem.fix and problem.where for problem in error.problems)
        assert error.code == bad.code
    else:
        assert not bad.is_error, report
        told = [(finding.code, finding.what) for finding in report.findings]
        assert report.verdict == bad.verdict
    assert any(code == bad.code and bad.place.lower() in text.lower() for code, text in told), told
    assert not any("Traceback" in text or "Error:" in text for _, text in told)
    assert time.monotonic() - started < 15  # 5 s on a quiet machine


@pytest.mark.parametrize(("number", "name", "text"), [pytest.param(*preset, id=preset[1]) for preset in PRESETS])
def test_bad_preset(number: int, name: str, text: str) -> None:
    with pytest.raises(SettingsError):
        RunConfig.parse(read_yaml(text, "bad.yaml"))


@pytest.mark.parametrize(("number", "name", "source", "code"), [pytest.param(*template, id=template[1]) for template in TEMPLATES])
def test_bad_template(number: int, name: str, source: str, code: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as refused:
        check_template(source)
    assert refused.value.code == code and refused.value.problems[0].fix
    assert time.monotonic() - started < 15


def test_template_of_a_strict_model_passes() -> None:
    check_template("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] }}")
