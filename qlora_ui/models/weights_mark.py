"""A mark by which the weights of a model are known again: its tensors' names and shapes, and a few bytes of each."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from qlora_ui.models.folder import read_header, weight_files

PLACES = (0.1, 0.5, 0.9)
"""Where in a tensor bytes are read, as shares of it."""
SAMPLE_BYTES = 64
"""Read at each place: other weights of the same shape differ in nearly all of their bytes."""


def weights_mark(folder: Path) -> str:
    """The mark of a model's folder; milliseconds for a thousand tensors, whatever their size.

    The same for the same tensors in other files. Raises ModelError where the weights are not whole.
    """
    marks = []
    for file in weight_files(folder):
        header = read_header(file)
        with file.open("rb") as stream:
            start = 8 + struct.unpack("<Q", stream.read(8))[0]
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                digest = hashlib.sha256()
                for place in PLACES:
                    stream.seek(start + begin + int(place * max(end - begin - SAMPLE_BYTES, 0)))
                    digest.update(stream.read(min(SAMPLE_BYTES, end - begin)))
                marks.append((name, entry["dtype"], entry["shape"], digest.hexdigest()))
    return hashlib.sha256(json.dumps(sorted(marks)).encode()).hexdigest()


def replaced_words(noted: str, now: str, folder: Path) -> str:
    """A sentence where an adapter was trained on other weights (`noted`) than are in the folder `now`; empty where nobody noted which."""
    if not noted or noted == now:
        return ""
    return (
        f"The base model in {folder.name} was replaced since the adapter was trained: its weights are others now, and the adapter may "
        "make nonsense of them. Put the former model back, or train a new run on this one."
    )
