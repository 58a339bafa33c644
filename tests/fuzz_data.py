"""Mutated datasets by the thousand: the reader may refuse them, with a typed message, and nothing else may happen.

`python tests/fuzz_data.py 10000 [SEED]` runs the long form: every input in the reader's own process, timed; it prints a line of
JSON with the counts. The tests run a short form.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qlora_ui.base.errors import DataError
from qlora_ui.catalog.formats import FORMATS
from qlora_ui.data.child import parse

SLOW_S = 10.0
PIECES = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"null", b"NaN", b"1e999",
    b"-0", b"\\ud800", b"\\u0000", b"'", b"//", b"<|im_end|>", b"true", b'"role"', b'"content"', b"[" * 200, b'{"a":' * 200,
    b"9" * 5000, b"\t", b";", "🙂".encode(), b"</s>", b'""', b"PAR1", b"\x1f\x8b", b"\xff\xfe",
)  # fmt: skip


def seeds() -> list[tuple[str, bytes]]:
    """Good files of every kind and format: suffix and bytes."""
    rows = [dict(row) for form in FORMATS for row in form.examples]
    files = [(".jsonl", (json.dumps(row, ensure_ascii=index % 2 == 0) + "\n").encode() * 12) for index, row in enumerate(rows)]
    files += [(".json", json.dumps([row] * 12).encode()) for row in rows[:8]]
    files.append((".json", json.dumps({"data": rows[-2:] * 5}, indent=1).encode()))
    table = "question,answer\n" + '"What, then?","He said ""yes"".\nTwice."\n' * 12
    files += [(".csv", table.encode()), (".csv", table.replace(",", ";").encode("cp1252")), (".tsv", table.replace(",", "\t").encode())]
    files += [(".csv", table.encode("utf-16")), (".txt", b"One paragraph.\n\nAnother one.\n" * 8)]
    files.append((".parquet", _parquet()))
    return files


def _parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"prompt": f"What is {n}?", "completion": "A number."} for n in range(40)]), buffer)
    return buffer.getvalue()


def mutate(content: bytes, chance: random.Random) -> bytes:
    """The file with one to eight changes: bytes flipped, pieces put in, cut out, doubled, swapped, the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1) if data else 0
        match chance.randrange(6):
            case 0 if data:
                data[min(at, len(data) - 1)] = chance.randrange(256)
            case 1:
                data[at:at] = chance.choice(PIECES)
            case 2:
                del data[at : at + chance.choice((1, 2, 10, 200))]
            case 3:
                data[at:at] = data[max(0, at - chance.randrange(1, 300)) : at]
            case 4:
                del data[at:]
            case _:
                other = chance.randrange(len(data) + 1) if data else 0
                piece = bytes(data[at : at + 20])
                data[other:other] = piece
    return bytes(data)


def inputs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Mutated files."""
    files = seeds()
    chance = random.Random(seed)
    for _ in range(count):
        suffix, content = chance.choice(files)
        yield (chance.choice((suffix, suffix, suffix, ".jsonl", ".json", ".csv")), mutate(content, chance))


def run(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read that many mutated files; counts by outcome. Any other exception than DataError comes through."""
    outcomes: Counter[str] = Counter()
    for number, (suffix, content) in enumerate(inputs(count, seed)):
        path = folder / f"input{suffix}"
        path.write_bytes(content)
        into = folder / "into"
        into.mkdir(exist_ok=True)
        job = {
            "path": str(path),
            "source": "",
            "name": path.name,
            "format": "auto",
            "mapping": {},
            "folder": str(into),
            "content_hash": "",
            "cpu_s": 60,
        }
        started = time.monotonic()
        try:
            report = parse(job)
        except DataError as error:
            outcomes[f"refused {error.code}"] += 1
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}{suffix}"
            shutil.copy(path, kept)
            print(f"input {number} of seed {seed} broke the reader; kept as {kept}", file=sys.stderr)
            raise
        else:
            outcomes["read with errors" if any(finding.severity == "error" for finding in report.findings) else "read"] += 1
        if time.monotonic() - started > SLOW_S:
            raise TimeoutError(f"input {number} of seed {seed} took {time.monotonic() - started:.0f} s")
        path.unlink()
    return outcomes


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        counts = run(wanted, int(sys.argv[2]) if len(sys.argv) > 2 else 1, Path(place))
    print(json.dumps({"inputs": wanted, "duration_s": round(time.monotonic() - begun, 1), **counts}))
