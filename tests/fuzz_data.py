"""Mutated datasets, presets and templates by the thousand: they may be refused, with a typed message, and nothing else may happen.

`python tests/fuzz_data.py 10000 [SEED]` runs the long form and writes tests/bench/results/fuzz_data.json: every input is read in
a child that is confined as the reader is, and watched from outside; a child that dies or takes over 10 s is counted, its input
kept. The tests run a short form.
"""

from __future__ import annotations

import copy
import json
import platform
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qlora_ui.base.errors import DataError, SettingsError
from qlora_ui.catalog.formats import FORMATS
from qlora_ui.catalog.templates import TEMPLATES
from qlora_ui.data.child import parse
from qlora_ui.data.limits import confine
from qlora_ui.data.template_child import try_template
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
SLOW_S = 10.0
OTHER_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e300, 10**30, "", " ", "x" * 3000, "\ud800", "[]", "[{}]", "{'a': 1}", "[" * 50, [], [[]], [None], ["a", "b"], {},
    {"": ""},
    {"role": "user"}, {"role": "assistant", "content": None}, [{"role": "user", "content": "a"}], {"text": ["a"], "answer_start": [0]},
)  # fmt: skip
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
    files += [(".preset", path.read_bytes()) for path in sorted((ROOT / "presets").glob("*.yaml"))[:3]]
    files += [(".template", template.jinja.encode()) for template in TEMPLATES[:3]]
    return files


def _parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"prompt": f"What is {n}?", "completion": "A number."} for n in range(40)]), buffer)
    return buffer.getvalue()


def _other_row(content: bytes, chance: random.Random) -> bytes:
    """The lines with one value, somewhere inside, of another kind; JSON all the same."""
    try:
        rows = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return content
    for _ in range(chance.choice((1, 1, 3))):
        at: Any = chance.choice(rows)
        for _ in range(6):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(at[key], dict | list) and chance.random() < 0.7:
                at = at[key]
                continue
            at[key] = copy.deepcopy(chance.choice(OTHER_VALUES))
            break
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def mutate(content: bytes, chance: random.Random) -> bytes:
    """The file with one to eight changes: bytes flipped, pieces put in, cut out, doubled, swapped, the end cut off."""
    data = bytearray(content)
    if data[:1] == b"{" and chance.random() < 0.3:
        return _other_row(content, chance)
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
    """Mutated files: suffix and bytes."""
    files = seeds()
    chance = random.Random(seed)
    for _ in range(count):
        suffix, content = chance.choice(files)
        is_dataset = suffix not in (".preset", ".template")
        yield (chance.choice((suffix, suffix, suffix, ".jsonl", ".json", ".csv")) if is_dataset else suffix), mutate(content, chance)


def read_one(path: Path, into: Path) -> str:
    """How the app takes one file, in words; any exception but a typed refusal comes through."""
    if path.suffix == ".template":
        code, _ = try_template(path.read_text(encoding="utf-8", errors="replace"))
        return f"refused {code}" if code else "read template"
    if path.suffix == ".preset":
        try:
            document = read_yaml(path.read_text(encoding="utf-8", errors="replace"), path.name)
            RunConfig.parse({key: value for key, value in document.items() if key not in ("title", "about", "card_gib")})
        except SettingsError:
            return "refused preset"
        return "read preset"
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
    try:
        report = parse(job)
    except DataError as error:
        return f"refused {error.code}"
    return "read with errors" if any(finding.severity == "error" for finding in report.findings) else "read"


def run(count: int, seed: int, folder: Path) -> Counter[str]:
    """Read that many mutated files in this process; counts by outcome. Any exception but a typed refusal comes through."""
    outcomes: Counter[str] = Counter()
    for number, (suffix, content) in enumerate(inputs(count, seed)):
        path = folder / f"input{suffix}"
        path.write_bytes(content)
        started = time.monotonic()
        try:
            outcomes[read_one(path, folder / "into")] += 1
        except BaseException:
            _keep(path, seed, number, "broke the reader")
            raise
        if time.monotonic() - started > SLOW_S:
            raise TimeoutError(f"input {number} of seed {seed} took {time.monotonic() - started:.0f} s")
        path.unlink()
    return outcomes


def _keep(path: Path, seed: int, number: int, what: str) -> None:
    kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}{path.suffix}"
    shutil.copy(path, kept)
    print(f"input {number} of seed {seed} {what}; kept as {kept}", file=sys.stderr)


class Reader:
    """A confined child that reads files one after the other, and the watch over it."""

    def __init__(self) -> None:
        self._answers: queue.Queue[str] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self.peak_bytes = 0

    def read(self, path: Path, into: Path) -> str:
        """The outcome; `died` or `hung` where there is none. The next file then gets a new child."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            assert self._process.stdout is not None
            threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
            self._answers.get(timeout=60)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([str(path), str(into)]) + "\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=SLOW_S)
        except queue.Empty:
            answer = "hung"
        except OSError:
            answer = "died"
        if answer in ("hung", "died"):
            self.close()
        return answer

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line.strip())
        self._answers.put("died")

    def close(self) -> None:
        """End the child, after a look at the most memory that it held."""
        if self._process is None:
            return
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
            marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
            self.peak_bytes = max([self.peak_bytes, *(int(mark) * 1024 for mark in marks)])
        except OSError:
            self.peak_bytes = max(
                self.peak_bytes, psutil.Process(self._process.pid).memory_info().rss if psutil.pid_exists(self._process.pid) else 0
            )
        self._process.kill()
        self._process.wait()
        self._process = None
        self._answers = queue.Queue()


def child() -> None:
    """Read the files whose paths come on the standard input, confined as the app's reader is."""
    confine(7200)
    print("ready", flush=True)
    for line in sys.stdin:
        path, into = json.loads(line)
        try:
            print(read_one(Path(path), Path(into)), flush=True)
        except Exception as error:  # What the app would show as a reader that ended: the fault that is looked for here.
            print(f"broke {type(error).__name__}", flush=True)


def watched(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """The long form: counts by outcome, deaths, hangs, the slowest input, the most memory."""
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    reader = Reader()
    for number, (suffix, content) in enumerate(inputs(count, seed)):
        path = folder / f"input{suffix}"
        path.write_bytes(content)
        started = time.monotonic()
        answer = reader.read(path, folder / "into")
        slowest_s = max(slowest_s, time.monotonic() - started)
        outcomes[answer] += 1
        if answer in ("hung", "died") or answer.startswith("broke"):
            _keep(path, seed, number, answer)
        path.unlink()
    reader.close()
    return {
        "inputs": count, "seed": seed, "deaths": outcomes["died"], "hangs_over_10_s": outcomes["hung"],
        "untyped": sum(times for answer, times in outcomes.items() if answer.startswith("broke")),
        "slowest_s": round(slowest_s, 2), "peak_bytes": reader.peak_bytes, "outcomes": dict(sorted(outcomes.items())),
    }  # fmt: skip


def main() -> None:
    """Run the long form and write its result."""
    if sys.argv[1:] == ["--child"]:
        child()
        return
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        result = watched(wanted, int(sys.argv[2]) if len(sys.argv) > 2 else 1, Path(place))
    result |= {
        "duration_s": round(time.monotonic() - begun, 1),
        "command": f"python tests/fuzz_data.py {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("orjson", "pyarrow", "numpy")},
    }
    print(json.dumps(result))
    if wanted >= 10_000:
        target = ROOT / "tests" / "bench" / "results" / "fuzz_data.json"
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["deaths"] or result["hangs_over_10_s"] or result["untyped"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
