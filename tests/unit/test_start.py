"""start.py as a user meets it: the wrong Python, no network, a path with spaces, a second start."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import start

ROOT = Path(start.__file__).resolve().parent
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
OFFLINE = start.advice("No matching distribution found")
posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in .venv is made of POSIX links")


def test_it_is_plain_python_that_older_ones_can_read_to_the_refusal() -> None:
    tree = ast.parse((ROOT / "start.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    roots |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots <= sys.stdlib_module_names - {"__future__"}  # annotations from there are a SyntaxError in 3.6, the python3 of RHEL 8
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    notes = [function.returns for function in functions]
    notes += [argument.annotation for function in functions for argument in function.args.args]
    assert all(note is None or isinstance(note, ast.Name | ast.Constant) for note in notes), "list[str] has to stand in quotes for 3.6"


@pytest.mark.parametrize(
    ("version", "system", "machine", "is_64_bit", "says"),
    [
        ((3, 10), "Linux", "x86_64", True, "3.10"),
        ((3, 15), "Linux", "x86_64", True, "3.15"),
        ((3, 12), "Windows", "AMD64", False, "32-bit"),
        ((3, 12), "Darwin", "x86_64", True, "Intel Macs"),
    ],
)
def test_machines_without_packages_get_a_sentence(version: tuple[int, int], system: str, machine: str, is_64_bit: bool, says: str) -> None:
    with pytest.raises(start.SetupFailed, match=says) as caught:
        start.refuse_machine(version, system, machine, is_64_bit)
    assert caught.value.fix


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_the_supported_pythons_pass(version: tuple[int, int]) -> None:
    start.refuse_machine(version, "Darwin", "arm64", True)


@pytest.mark.parametrize(
    ("system", "driver", "index", "says"),
    [
        ("Windows", 581, "cu130", "CUDA"),
        ("Windows", 560, "cu126", "CUDA"),
        ("Windows", None, "", "CPU"),
        ("Linux", 590, "", "CUDA 13"),
        ("Linux", 550, "cu126", "CUDA"),
        ("Linux", 470, "", "too old"),
        ("Linux", None, "", "several GiB"),
        ("Darwin", None, "", "Mac"),
    ],
)
def test_the_torch_fits_the_machine_and_it_says_so(system: str, driver: int | None, index: str, says: str) -> None:
    torch, url, words = start.choose_torch(REQUIREMENTS, system, driver)
    assert torch.startswith("torch==") and says in words
    assert url == (f"{start.TORCH_INDEX}{index}" if index else "")
    assert torch.endswith(f"+{index}") or not index


def test_loopback_never_goes_through_a_proxy() -> None:
    environment = {"NO_PROXY": "example.org,localhost", "HTTP_PROXY": "http://nowhere.invalid:1"}
    start.shield_loopback(environment)
    assert environment["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    assert environment["no_proxy"] == "127.0.0.1,localhost"


def _copy(tmp_path: Path) -> Path:
    root = tmp_path / "a folder with spaces"
    root.mkdir()
    shutil.copy(ROOT / "start.py", root)
    (root / "requirements.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    return root


def _start(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # an index that is not there stands for a machine without network
    pip = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name.lower() != "no_proxy"}
    return subprocess.run(
        [sys.executable, str(root / "start.py"), *words],
        env=clean | pip | environment,
        cwd=root.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_network_the_failed_step_is_named_and_nothing_is_stamped(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    done = _start(root, "options", "--json")
    assert done.returncode == 1 and done.stdout == ""
    assert "The set-up stopped: installing requirements.txt." in done.stderr
    assert "check network and proxy" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((root / ".venv").glob(".qlora-ui*"))


@posix
def test_a_second_start_goes_straight_to_the_app(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    (root / "app.py").write_text(
        "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['NO_PROXY'], os.getcwd()]))", encoding="utf-8"
    )
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (root / ".venv" / "lib" / "python{}.{}".format(*sys.version_info)).mkdir(parents=True)
    (root / ".venv" / "pyvenv.cfg").write_text(f"version = {sys.version.split()[0]}\n", encoding="utf-8")
    stamp = subprocess.run(
        [sys.executable, "-c", "import start; print(start.fingerprint(('requirements.txt',)), end='')"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (root / ".venv" / ".qlora-ui").write_text(stamp, encoding="utf-8")
    begun = time.monotonic()
    done = _start(root, "train", "--preset", "demo x", HTTP_PROXY="http://nowhere.invalid:1")
    assert time.monotonic() - begun < 5
    assert done.stderr == ""
    assert json.loads(done.stdout) == [["train", "--preset", "demo x"], "127.0.0.1,localhost", str(tmp_path)]
    (root / "requirements.txt").write_text("torch==2.13.1\n", encoding="utf-8")
    assert "asks for other packages than at the last start" in _start(root).stderr


@pytest.mark.parametrize(
    "case",
    [
        (OFFLINE, True, ["runs"], True),
        (OFFLINE, False, ["runs"], False),
        (OFFLINE, True, ["test"], False),
        ("The disk is full", True, ["runs"], False),
    ],
)
def test_an_update_without_network_starts_with_what_is_there_if_that_imports(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: tuple[str, bool, list[str], bool]
) -> None:
    fix, imports, words, starts = case

    def fail(stamps: object) -> None:
        raise start.SetupFailed("installing requirements.txt", "No matching distribution found", fix)

    started: list[list[str]] = []
    monkeypatch.setattr(start, "set_up_alone", fail)
    monkeypatch.setattr(start, "run", lambda command: (0 if imports and "qlora_ui.ui.app" in command[-1] else 1, []))
    monkeypatch.setattr(start, "hand_over", lambda command, environment: started.append(command) or 0)
    assert start.main(words) == (0 if starts else 1) and bool(started) is starts
    said = capsys.readouterr().err
    assert fix in said and ("Until then it starts with the packages that are here" in said) is starts


def test_the_stamp_follows_the_requirement_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "ROOT", str(tmp_path))
    (tmp_path / "requirements.txt").write_text("a==1\n", encoding="utf-8")
    first = start.fingerprint(("requirements.txt",))
    assert first == start.fingerprint(("requirements.txt",))
    (tmp_path / "requirements.txt").write_text("a==2\n", encoding="utf-8")
    assert start.fingerprint(("requirements.txt",)) != first


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .venv of Python 3.12, linked to a python3 of a system."""
    folder = tmp_path / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / "python3.12").mkdir(parents=True)
    (tmp_path / "usr").mkdir()
    for name in ("python3.12", "python3.13", "python"):
        (tmp_path / "usr" / name).touch(mode=0o755)
    (tmp_path / "usr" / "python3").symlink_to("python3.12")
    (folder / "bin" / "python").symlink_to(tmp_path / "usr" / "python3")
    monkeypatch.setattr(start, "VENV", str(folder))
    monkeypatch.setattr(start, "PYTHON", str(folder / "bin" / "python"))
    return folder


@posix
@pytest.mark.parametrize(("now", "is_usable"), [("python3.12", True), ("python3.13", False), ("nowhere", False), ("python", True)])
def test_a_python_that_the_system_took_away_or_updated_is_found_out(venv: Path, now: str, is_usable: bool) -> None:
    system = venv.parent / "usr" / "python3"
    system.unlink()
    system.symlink_to(now)
    assert start.venv_is_usable() is is_usable


@posix
def test_it_is_set_up_anew_then_and_says_why(venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    monkeypatch.setattr(start, "set_up", lambda stamps: done.append("set up"))
    monkeypatch.setattr(start, "hand_over", lambda command, environment: done.append("started") or 0)
    (venv / ".qlora-ui").write_text(start.fingerprint(("requirements.txt",)), encoding="utf-8")
    assert start.main([]) == 0 and done == ["started"]
    (venv.parent / "usr" / "python3").unlink()
    assert start.main([]) == 0 and done == ["started", "set up", "started"]
    assert "The Python that .venv was made with is gone" in capsys.readouterr().err


@posix
def test_a_python_that_cannot_be_started_is_told_in_words(venv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.hand_over([str(venv / "bin" / "none")], {}) == 1
    said = capsys.readouterr().err
    assert "cannot be started: No such file or directory." in said and "Delete the folder .venv" in said


def test_one_file_alone_is_told_and_makes_nothing(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    (root / "requirements.txt").unlink()
    done = _start(root)
    assert done.returncode == 1 and f"there is no requirements.txt in {root}" in done.stderr and "Traceback" not in done.stderr
    assert not (root / ".venv").exists()


@posix
def test_a_link_to_it_works_on_the_folder_that_it_points_to(tmp_path: Path) -> None:
    root = _copy(tmp_path)
    (root / "requirements.txt").unlink()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "start.py").symlink_to(root / "start.py")
    assert f"there is no requirements.txt in {root}" in _start(tmp_path / "bin").stderr


DEBIAN = "The virtual environment was not created successfully because ensurepip is not available."
NO_PIP = "Error: Command '['/x/.venv/bin/python3.11', '-m', 'ensurepip', '--upgrade']' returned non-zero exit status 1."


@pytest.mark.parametrize(
    ("said", "free_bytes", "fix"),
    [
        ("Error: [Errno 13] Permission denied: '/opt/qlora-ui/.venv'", 1 << 40, "You may not write in"),
        ("Error: [Errno 30] Read-only file system: '/mnt/.venv'", 1 << 40, "You may not write in"),
        (NO_PIP, 1 << 20, "The disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded", 1 << 40, "The disk is full"),
        (DEBIAN, 1 << 40, "python3-venv"),
        ("No module named venv", 1 << 40, "python3-venv"),
        ("Error: Refusing to create a venv in /tmp/a:b/.venv because it contains the PATH separator :.", 1 << 40, ""),
    ],
)
def test_the_advice_follows_what_was_said(monkeypatch: pytest.MonkeyPatch, said: str, free_bytes: int, fix: str) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, free_bytes))
    assert start.advice(said).startswith(fix) if fix != "python3-venv" else fix in start.advice(said)
    assert bool(start.advice(said)) is bool(fix)


def test_a_venv_of_another_user_is_told_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(stamps: object) -> None:
        raise PermissionError(13, "Permission denied", ".venv/.qlora-ui")

    monkeypatch.setattr(start, "set_up", refuse)
    monkeypatch.setattr(start, "venv_is_usable", lambda: False)
    assert start.main([]) == 1
    said = capsys.readouterr().err
    assert "The set-up stopped: writing into .venv." in said and "You may not write in" in said


def test_no_other_pythons_packages_reach_the_app_or_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, "/opt/ros/humble/lib/python3.10/site-packages")
    started: list[dict[str, str]] = []
    monkeypatch.setattr(start, "venv_is_usable", lambda: True)
    monkeypatch.setattr(start, "read", lambda path: "as it is")
    monkeypatch.setattr(start, "fingerprint", lambda files: "as it is")
    monkeypatch.setattr(start, "hand_over", lambda command, environment: started.append(environment) or 0)
    assert start.main([]) == 0 and not {"PYTHONPATH", "PYTHONHOME"} & set(started[0])
    monkeypatch.undo()
    monkeypatch.setenv("PIP_USER", "1")
    code, lines = start.run([sys.executable, "-c", "import os; print(os.environ['PIP_USER'], 'PYTHONPATH' in os.environ)"])
    assert (code, lines) == (0, ["0 False"])  # a pip.conf with “user = true” would stop every install into .venv


def test_tests_that_are_interrupted_end_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: list[str], env: dict[str, str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "call", interrupted)
    assert start.run_all_tests({}) == 130


def test_a_second_start_waits_while_the_first_sets_up(
    venv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    first = open(f"{venv}.lock", "w", encoding="utf-8")  # noqa: SIM115
    assert start.try_lock(first.fileno())
    monkeypatch.setattr(time, "sleep", lambda seconds: first.close())
    monkeypatch.setattr(start, "is_set_up", lambda stamps: True)
    monkeypatch.setattr(start, "set_up", lambda stamps: done.append("a second time"))
    start.set_up_alone(start.STAMPS[:1])
    assert not done and "this one waits for it" in capsys.readouterr().err


def test_without_the_packages_the_app_says_what_brings_them() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", str(ROOT / "app.py"), "runs"]  # without what is installed
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "start.py" in done.stderr and "Traceback" not in done.stderr
