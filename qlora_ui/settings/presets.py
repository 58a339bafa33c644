"""Presets: what differs from the defaults, as YAML with the reason of each line as a comment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.files import safe_stem, write_text
from qlora_ui.base.trash import throw_away_file
from qlora_ui.base.units import KIB
from qlora_ui.settings.migrate import VERSION
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.yaml_text import NUMBER_WITH_EXPONENT, dump_yaml

SHIPPED = Path(__file__).resolve().parents[2] / "presets"
FIRST_PRESET = "demo"
"""What a first visit begins with."""
HEAD = ("title", "about", "card_gib")
"""What the file of a preset says beside its settings."""
MAX_YAML_BYTES = 256 * KIB
MAX_TITLE = 80


@dataclass(frozen=True, slots=True)
class Preset:
    """A named set of settings."""

    name: str
    title: str
    about: str
    card_gib: float | None
    """Memory of the smallest card that it is meant for; None runs anywhere."""
    path: Path
    config: RunConfig


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few hundred bytes of them expand to gigabytes) and with `2e-4` as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed here")
        return super().compose_node(parent, index)


_QUICK: Any = getattr(yaml, "CSafeLoader", None)
"""libyaml's parser, ten times as fast; missing where PyYAML was built without it."""


class _QuickLoader(_QUICK or _Loader):  # type: ignore[misc]  # a class that is chosen at run time
    """For texts that can hold no alias: libyaml composes in C, where aliases cannot be refused."""


for _loader in (_Loader, _QuickLoader):
    _loader.add_implicit_resolver(*NUMBER_WITH_EXPONENT)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Nested settings from YAML text.

    Raises SettingsError, with the line, where the text is no YAML mapping, too large, or asks for Python objects.
    """
    if len(text.encode()) > MAX_YAML_BYTES:
        raise SettingsError(
            f"{where} is larger than {MAX_YAML_BYTES // 1024} KiB.",
            why="Settings fit on a page.",
            fix="Leave out what is no setting",
            where=where,
            code="preset",
        )
    try:
        value = _loaded(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number of 5,000 digits, a 13th month.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise SettingsError(
            "the file is not readable YAML", why=reason, fix="Compare with a file in presets/", where=f"{where}{line}", code="preset"
        ) from None
    if not isinstance(value, dict):
        raise SettingsError("the file holds no settings", fix="It starts with lines such as “lora:”", where=where, code="preset")
    return value


def _loaded(text: str) -> Any:
    if "*" not in text:
        try:
            return yaml.load(text, Loader=_QuickLoader)
        except yaml.YAMLError:
            pass  # said again below, in the words and with the line of the other parser
    return yaml.load(text, Loader=_Loader)


def read_preset(path: Path) -> Preset:
    """The preset in a file; raises SettingsError where it does not parse or its settings are wrong."""
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        fix = "Save it as UTF-8, or give yourself the right to read it"
        raise SettingsError(f"{path.name} cannot be read.", why=str(error), fix=fix, where=path.name, code="preset") from None
    head = {key: document.pop(key, None) for key in HEAD}
    config = RunConfig.parse(document)
    card_gib = head["card_gib"] if isinstance(head["card_gib"], int | float) else None
    return Preset(path.stem, str(head["title"] or path.stem), str(head["about"] or ""), card_gib, path, config)


def list_presets(user_folder: Path | None = None) -> list[Preset]:
    """The presets that ship with the app, then the user's own; files that do not parse are left out."""
    presets = []
    for path in _files(user_folder):
        try:
            presets.append(_unchanged(path))
        except (SettingsError, OSError):
            continue
    return presets


def unreadable_presets(user_folder: Path) -> dict[str, str]:
    """The user's own files that are left out of the list, by name, with what is wrong with each."""
    found = {}
    for path in sorted(user_folder.glob("*.yaml")):
        try:
            _unchanged(path)
        except SettingsError as error:
            found[path.name] = error.problems[0].sentence()
        except OSError as error:
            if os.path.lexists(path):  # a link to what is not there
                found[path.name] = str(error)
    return found


def find_preset(name: str, user_folder: Path | None = None) -> Preset:
    """The preset of that name; raises SettingsError naming the ones that exist."""
    for path in _files(user_folder):
        if path.stem == name:
            try:
                return _unchanged(path)
            except OSError as error:
                raise SettingsError(f"{path.name} cannot be read.", why=str(error), where="preset", code="preset") from None
    known = ", ".join(path.stem for path in _files(user_folder))
    raise SettingsError(f"There is no preset “{name}”.", fix=f"Choose one of {known}", where="preset", code="preset")


def named_preset(typed: str) -> tuple[str, str]:
    """Name and title of a preset from what its owner typed: `My look` is kept as `my-look`; both empty where nothing can name a file."""
    words = " ".join(typed.split())[:MAX_TITLE]
    name = safe_stem(words.lower())
    return name, (name.replace("-", " ").capitalize() if name == words else words) if name else ""


def is_taken(name: str, user_folder: Path) -> bool:
    """Whether a preset of the user's own has that name, be it readable or not."""
    return _can_name(name) and os.path.lexists(user_folder / f"{name}.yaml")


def save_preset(name: str, title: str, config: RunConfig, user_folder: Path, *, replaces: bool = False) -> Path:
    """Write the user's settings as a preset of their own and return its file.

    Raises SettingsError where the name cannot be one, or is another preset's and nobody said that it `replaces` that.
    """
    if not _can_name(name):
        raise SettingsError("A preset needs a name.", fix="Write a word or two", where="preset", code="preset")
    if any(path.stem == name for path in _files(None)):
        raise SettingsError(f"“{name}” is a preset that comes with the app.", fix="Choose another name", where="preset", code="preset")
    if is_taken(name, user_folder) and not replaces:
        raise SettingsError(
            f"There is a preset “{name}” already.",
            fix="Choose another name, or save again to replace it",
            where="preset",
            code="preset-taken",
        )
    document = {"version": VERSION, "title": title, **config.to_nested(only_changed=True)}
    path = user_folder / f"{name}.yaml"
    write_text(path, dump_yaml(document))
    return path


def delete_preset(name: str, user_folder: Path, trash: Path) -> Path:
    """Move a preset of the user's own, be it readable or not, to the trash and return where; raises SettingsError where there is none.

    No run needs it: each has its settings in its own folder.
    """
    path = next((path for path in user_folder.glob("*.yaml") if path.stem == name), None)
    if path is None:
        what, fix = f"You have no preset “{name[:80]}”.", "Reload the page: it may have been deleted elsewhere"
        raise SettingsError(what, fix=fix, where="preset", code="preset")
    try:
        title = read_preset(path).title
    except SettingsError:
        title = path.stem
    return throw_away_file(path, user_folder, trash, kind="preset", name=title)


def _can_name(name: str) -> bool:
    return bool(name) and name == safe_stem(name)


def _unchanged(path: Path) -> Preset:
    """The preset in a file, parsed anew only when the file has changed; raises OSError where it is gone."""
    stat = path.stat()
    return _parsed(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, changed_ns: int, size: int) -> Preset:
    return read_preset(path)


def _files(user_folder: Path | None) -> Iterable[Path]:
    yield from sorted(SHIPPED.glob("*.yaml"), key=lambda path: (path.stem != FIRST_PRESET, path.stem))
    if user_folder is not None:
        yield from sorted(user_folder.glob("*.yaml"))
