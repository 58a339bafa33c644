"""Every option as a flag, and the way from flags to a RunConfig."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_ui.base.errors import Problem, QloraUiError, SettingsError
from qlora_ui.base.files import write_text
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import HEAD, find_preset, read_yaml
from qlora_ui.settings.run_config import RunConfig, option_by_path


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """`--preset`, `--config FILE`, and one flag for every option (`--lora.rank 8`)."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--preset", metavar="NAME", help="start from a preset (demo, …)")
    start.add_argument("--config", metavar="FILE", help="start from a YAML file of settings")
    about = "such as --lora.rank 8: any option by its path, over the preset or file; “app.py options” explains each"
    group = parser.add_argument_group("settings", about)
    for option in option_by_path().values():
        group.add_argument(f"--{option.path}", dest=option.path, metavar="VALUE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def config_from(arguments: argparse.Namespace, workspace: Workspace, *, default_preset: str | None = None) -> RunConfig:
    """The RunConfig that the flags mean; raises SettingsError with all problems at once."""
    given = given_settings(arguments)
    with all_at_once(given):
        if arguments.config:
            start = _read_config_file(Path(arguments.config).expanduser())
        else:
            preset = arguments.preset or default_preset
            start = find_preset(preset, workspace.presets).config if preset else RunConfig()
    return start.changed(given) if given else start


def given_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """Option path to text for every setting that was given as a flag, misspelt ones too."""
    return {path: value for path, value in vars(arguments).items() if "." in path}


@contextmanager
def all_at_once(given: dict[str, str]) -> Iterator[None]:
    """Where the settings that the flags would have changed are wrong, say what is wrong with the flags too."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(problems=[*error.problems, *_wrong_by_themselves(given)]) from None


def _wrong_by_themselves(given: dict[str, str]) -> tuple[Problem, ...]:
    """What is wrong with flags whatever they would have changed."""
    try:
        RunConfig().changed(given)
    except SettingsError as error:
        return tuple(problem for problem in error.problems if problem.code in ("setting", "unknown-option"))
    return ()


def refuse_settings_beside(flag: str, arguments: argparse.Namespace, what: str, fix: str) -> None:
    """Raise QloraUiError where settings are given beside a run (`flag`), which has its own: they would be ignored, right or wrong."""
    starts = [name for name in ("preset", "config") if getattr(arguments, name)]
    given = [f"--{name}" for name in (*starts, *given_settings(arguments))]
    if given:
        names = ", ".join(dict.fromkeys(given))
        raise QloraUiError(
            what, why=f"{names} beside {flag} would change nothing.", fix=f"Leave {names} out, or {fix}", where=flag, code="usage"
        )


def write_settings(path: Path, config: RunConfig, flag: str) -> None:
    """Write what differs from the defaults as YAML; raises QloraUiError, naming the flag that gave the place, where that cannot be."""
    try:
        write_text(path, config.to_yaml(only_changed=True))
    except OSError as error:
        why = error.strerror or str(error)
        raise QloraUiError(f"{path} cannot be written.", why=why, fix="Give another place.", where=flag, code="usage") from None


def _read_config_file(path: Path) -> RunConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} cannot be read.", why=str(error), fix="Give the path of a YAML file.", where="--config") from None
    document = read_yaml(text, path.name)
    return RunConfig.parse({key: value for key, value in document.items() if key not in HEAD})


def table(rows: Iterable[Iterable[object]]) -> str:
    """Rows as aligned text columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if texts else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)
