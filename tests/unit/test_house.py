"""Rules that are tests: layers, what start-up imports, generated pages, words that must not stand in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "qlora_ui").rglob("*.py")), ROOT / "app.py", ROOT / "start.py"]
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_layers_hold_also_inside_functions() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_live_in_the_engine_and_gradio_in_ui(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    part = path.relative_to(ROOT).parts
    inside = part[1] if len(part) > 2 else ""
    if inside != "engine":
        assert not roots & HEAVY
    if inside != "ui":
        assert "gradio" not in roots
    if inside == "ui":
        assert not any(name.startswith("qlora_ui.engine") for name in imports(path))


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_command_line_starts_light() -> None:
    heavy = "[name for name in ('torch', 'gradio', 'transformers', 'pandas') if name in sys.modules]"
    code = f"import sys, qlora_ui.cli; qlora_ui.cli.main(['options', '--json']); print({heavy}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_no_shell_no_eval_no_pickle() -> None:
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert not (isinstance(node.func, ast.Name) and name in {"eval", "exec"}), where
                assert not any(word.arg == "shell" and getattr(word.value, "value", False) for word in node.keywords), where
                assert not any(
                    word.arg == "trust_remote_code" and getattr(word.value, "value", None) is not False for word in node.keywords
                ), where
        assert not {"pickle", "dill", "cloudpickle"} & {name.split(".")[0] for name in imports(path)}, path


def test_files_are_opened_as_utf8() -> None:
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
                is_ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "files"
                assert is_ours or any(word.arg == "encoding" for word in node.keywords), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_option_reference_is_current() -> None:
    from qlora_ui.settings.reference import render_reference

    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == render_reference(), (
        "run: python -m qlora_ui.settings.reference > docs/options.md"
    )
