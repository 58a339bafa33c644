"""The short form of the fuzzing: mutated files are read or refused with a typed message, never anything else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.data.parse import parse_file
from qlora_ui.runs.workspace import Workspace


def fuzz_module() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_data", Path(__file__).resolve().parent.parent / "fuzz_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_files_in_this_process(tmp_path: Path) -> None:
    outcomes = fuzz_module().run(400, 11, tmp_path)
    assert sum(outcomes.values()) == 400
    assert outcomes["read"] and len(outcomes) > 4


def test_mutated_files_in_a_watched_and_confined_child(tmp_path: Path) -> None:
    result = fuzz_module().watched(150, 13, tmp_path)
    assert (result["deaths"], result["hangs_over_10_s"], result["untyped"]) == (0, 0, 0), result
    assert sum(result["outcomes"].values()) == 150


def test_mutated_files_through_the_child(tmp_path: Path, workspace: Workspace) -> None:
    for number, (suffix, content) in enumerate(fuzz_module().inputs(8, 12)):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        try:
            assert parse_file(path, workspace).num_rows > 0
        except DataError as error:
            assert error.code.startswith("DATA-") and error.code != "DATA-LIMIT", error
