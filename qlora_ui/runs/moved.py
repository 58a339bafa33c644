"""Where a workspace has lain: settings name its files by their whole paths, and they have to be found after it was moved."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qlora_ui.base.files import read_json, typed_path, write_json
from qlora_ui.settings.run_config import RunConfig

MOST_PLACES = 20
_FILE = ".places.json"


def note_place(root: Path) -> None:
    """Write down where the workspace is now; for whoever owns it."""
    before = places(root)
    if str(root) not in before:
        write_json(root / _FILE, [*before, str(root)][-MOST_PLACES:])


def places(root: Path) -> list[str]:
    """Where the workspace is and was, as far as it was noted."""
    known = read_json(root / _FILE)
    return [place for place in known if isinstance(place, str) and place] if isinstance(known, list) else []


def found_here(text: str, root: Path, earlier: list[str]) -> str:
    """The path of a file or folder of the workspace where it is now; any other text as it is.

    Nothing is changed that still is where it was: a workspace may have been copied.
    """
    for place in earlier:
        if place == str(root) or not text.startswith((f"{place}/", f"{place}\\")):
            continue
        # The system that it came from may have written paths in its own way.
        parts = [part for part in re.split(r"[\\/]", text[len(place) :]) if part]
        here = root.joinpath(*parts)
        if parts and ".." not in parts and not os.path.exists(typed_path(text)) and here.exists():
            return str(here)
    return text


def moved_here(config: RunConfig, root: Path) -> RunConfig:
    """Settings of a run or a page, with the workspace's own files where they are now."""
    earlier = places(root)
    if not any(place != str(root) for place in earlier):
        return config
    sources = [source.model_copy(update={"id": found_here(source.id, root, earlier)}) for source in config.data.sources]
    values = {path: found_here(str(config.get(path) or ""), root, earlier) for path in ("model.id", "lora.start_from")}
    return config.changed({"data.sources": [source.model_dump() for source in sources], **values})
