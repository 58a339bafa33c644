"""What an export must not hold, searched for in all of its files: canaries that were planted, paths, tokens, pickles."""

from __future__ import annotations

import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name inside."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def private_parts(files: Mapping[str, bytes], canaries: Sequence[str]) -> list[tuple[str, str]]:
    """(file, what was found) for everything that should not be there."""
    found = []
    for name, content in files.items():
        if name.startswith(("/", "..")):
            found.append((name, "a path outside"))
        found += [(name, canary) for canary in canaries if canary.encode() in content or canary in name]
        if name.endswith(PICKLES) or _is_pickle(content):
            found.append((name, "a pickle"))
    return found


def _is_pickle(content: bytes) -> bool:
    if not content.startswith(b"\x80"):
        return False
    try:
        list(pickletools.genops(content))
    except ValueError:
        return False
    return True
