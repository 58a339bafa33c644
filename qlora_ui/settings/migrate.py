"""Settings written by earlier versions, brought to today's layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_ui.base.errors import SettingsError

VERSION = 1
BEFORE: Mapping[str, Any] = {}
"""What the app did before it had an option, by the option's path, where today's default does something else."""


def as_then(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, written with every option of its time: one that came later stands at what the run trained with.

    Not for presets and drafts, which leave out what has its default and want today's.
    """
    filled = dict(nested)
    for path, value in BEFORE.items():
        section, name = path.split(".")
        values = filled.get(section) or {}
        if isinstance(values, Mapping):
            filled[section] = {name: value, **values}
    return filled


def migrate(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in today's layout, without the version key.

    Raises SettingsError where they come from a newer version of the app or are no mapping of sections.
    """
    if not isinstance(nested, Mapping):
        raise SettingsError(
            "The settings are not a list of sections.", fix="A file of settings has lines such as “lora:” and “  rank: 16”."
        )
    version = nested.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise SettingsError(
            f"These settings have layout {version}.",
            why=f"This app reads layouts up to {VERSION}.",
            fix="Update QLoRA UI.",
            where="version",
        )
    return {key: value if value is not None else {} for key, value in nested.items() if key != "version"}
