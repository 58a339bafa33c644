# ruff: noqa: E501 (templates and tables read better in one line)
"""Datasets, presets and templates that are wrong in every known way, made on the spot, with what must be said about each.

`python tests/corpus.py DIR` writes them all to DIR and prints the table.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bad:
    """One bad input."""

    number: int
    name: str
    make: Callable[[Path], object]
    code: str
    """The expected code of the error or finding; empty where the file is fine."""
    place: str = ""
    """What the message must hold: a line, a column, a name."""
    is_error: bool = True
    """Whether nothing of the file can be used (exit code 2); otherwise the report says it."""
    verdict: str = ""
    """The verdict where there is a report."""
    data: dict[str, Any] = field(default_factory=dict)
    """Data settings other than the default; such a case needs a tokenizer."""


def text(*lines: str, end: str = "\n") -> Callable[[Path], object]:
    """A text file of these lines."""
    return lambda path: path.write_text("\n".join(lines) + end, encoding="utf-8")


def raw(content: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    """A file of these bytes."""
    return lambda path: path.write_bytes(content() if callable(content) else content)


def rows(*values: Any) -> Callable[[Path], object]:
    """A JSONL of these rows."""
    return text(*(json.dumps(value) for value in values))


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    """A row of the messages format."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _parquet(columns: Callable[[], dict[str, Iterable[Any]]], **options: Any) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns()), path, **options)

    return make


def _bomb(path: Path) -> None:
    """About 100 KB that unpack to 1 GB: one text of a megabyte, a thousand times, kept once in a dictionary."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"text": column.cast(pa.string())}), path, compression="zstd", use_dictionary=True)


def _truncated_parquet(path: Path) -> None:
    good = path.with_suffix(".whole")
    _parquet(lambda: {"text": ["good row"] * 50})(good)
    path.write_bytes(good.read_bytes()[:-40])
    good.unlink()


def _zip(path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../outside.jsonl", '{"text": "x"}\n')
    path.write_bytes(buffer.getvalue())


def _folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    (path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../secret.txt\n---\n", encoding="utf-8")
    (path.parent / "secret.txt").write_text("a secret\n", encoding="utf-8")


def big(path: Path, num_bytes: int = 1 << 30) -> None:
    """A JSONL of that size: chat rows of about 400 letters, each different."""
    words = ("tide", "moon", "harbour", "lantern", "copper", "meadow", "granite", "winter", "orchard", "signal", "bridge", "river")
    number = 0
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        written = 0
        while written < num_bytes:
            lines = []
            for _ in range(5000):
                number += 1
                said = " ".join(
                    words[(number * 31 + step * step * (number % 97 + 1)) % 12] + str((number * 7919 + step) % 9973) for step in range(26)
                )
                lines.append(json.dumps(chat(("user", f"Question {number}: {said[:120]}?"), ("assistant", said))))
            block = "\n".join(lines) + "\n"
            file.write(block)
            written += len(block)


_PC = {"prompt": "The sky is", "completion": "blue."}
_GOOD = [chat(("user", f"What is {n} and {n}?"), ("assistant", f"It is {2 * n}, which is twice {n}.")) for n in range(12)]

DATASETS: tuple[Bad, ...] = (
    Bad(1, "empty.jsonl", raw(b""), "DATA-EMPTY", "empty"),
    Bad(2, "blank.jsonl", text("", "", "", end="\n"), "DATA-EMPTY", "3 blank lines"),
    Bad(3, "header_only.csv", text("prompt,completion"), "DATA-EMPTY", "header"),
    Bad(4, "zero_rows.parquet", _parquet(lambda: {"text": __import__("pyarrow").array([], "string")}), "DATA-EMPTY", "no rows"),
    Bad(5, "empty.csv", raw(b""), "DATA-EMPTY", "empty"),
    Bad(6, "one_row.jsonl", rows(_PC), "DATA-TINY", "1 row", is_error=False, verdict="look"),
    Bad(7, "trunc.jsonl", text(json.dumps(_PC), '{"prompt": "a", "completion": "bro', end=""), "DATA-JSON", "line 2 column 31: unfinished string",
        is_error=False, verdict="not-trainable"),
    Bad(8, "trailcomma.jsonl", text('{"prompt": "a", "completion": "b",}'), "DATA-JSON", "trailing comma"),
    Bad(9, "single_quotes.jsonl", text("{'prompt': 'a', 'completion': 'b'}"), "DATA-JSON", "single quotes"),
    Bad(10, "comment.jsonl", text("// rows of today", json.dumps(_PC)), "DATA-JSON", "comment", is_error=False, verdict="not-trainable"),
    Bad(11, "html.jsonl", text("<!DOCTYPE html><html><body>Please log in</body></html>"), "DATA-TYPE", "HTML"),
    Bad(12, "pickle.jsonl", raw(lambda: pickle.dumps([_PC])), "DATA-TYPE", "pickle"),
    Bad(13, "png.jsonl", raw(b"\x89PNG\r\n\x1a\n" + bytes(200)), "DATA-TYPE", "PNG"),
    Bad(14, "gz_named.jsonl", raw(lambda: gzip.compress(json.dumps(_PC).encode())), "DATA-TYPE", "gzip"),
    Bad(15, "real.jsonl.gz", raw(lambda: gzip.compress(json.dumps(_PC).encode())), "DATA-TYPE", "gzip"),
    Bad(16, "a.zip", _zip, "DATA-TYPE", "zip"),
    Bad(17, "gz_bomb.jsonl", raw(lambda: gzip.compress(bytes(50_000_000), 9)), "DATA-TYPE", "gzip"),
    Bad(18, "bomb.parquet", _bomb, "DATA-LIMIT", "batch"),
    Bad(19, "manycols.parquet", _parquet(lambda: {f"c{n}": ["x"] for n in range(10_000)}), "DATA-LIMIT", "10000 columns"),
    Bad(20, "trunc.parquet", _truncated_parquet, "DATA-PARQUET", "truncated"),
    Bad(21, "notparquet.parquet", text("just some text, nothing else"), "DATA-PARQUET", "no Parquet"),
    Bad(22, "empty.parquet", raw(b""), "DATA-EMPTY", "empty"),
    Bad(23, "deep1000.jsonl", text('{"text": ' + "[" * 1000 + "]" * 1000 + "}"), "DATA-LIMIT", "line 1"),
    Bad(24, "deep100k.jsonl", text("[" * 100_000 + "]" * 100_000), "DATA-LIMIT", "32 levels"),
    Bad(25, "longline.jsonl", text(json.dumps({"text": "a" * 30_000_000})), "DATA-LIMIT", "line 1"),
    Bad(27, "latin1.jsonl", raw('{"prompt": "é", "completion": "b"}\n'.encode("latin-1")), "DATA-UTF8", "byte 13"),
    Bad(28, "utf16.jsonl", raw((json.dumps(_PC) + "\n").encode("utf-16")), "DATA-UTF8", "UTF-16"),
    Bad(29, "bom.jsonl", raw(b"\xef\xbb\xbf" + json.dumps(_PC).encode() + b"\n"), "DATA-BOM", "byte order mark", is_error=False, verdict="look"),
    Bad(30, "nul.jsonl", raw(b'{"prompt": "a\0", "completion": "b"}\n'), "DATA-CTRL", "NUL"),
    Bad(31, "nulcsv.csv", raw(b"prompt,completion\na\0,b\n"), "DATA-CTRL", "NUL"),
    Bad(32, "surrogate.jsonl", text('{"prompt": "a", "completion": "\\ud800"}'), "DATA-UTF8", "surrogate"),
    Bad(33, "nanval.jsonl", text('{"text": NaN}'), "DATA-FIELD", "`text` is empty"),
    Bad(34, "bigint.jsonl", text('{"prompt": "a", "completion": "b", "id": 123456789012345678901234567890}'), "DATA-TINY", "1 row",
        is_error=False, verdict="look"),
    Bad(35, "dupkeys.jsonl", text('{"text": "a", "text": "b"}'), "DATA-JSON", "“text” twice"),
    Bad(36, "scalar_lines.jsonl", text("1", "2", "3"), "DATA-SHAPE", "must be an object"),
    Bad(37, "string_lines.jsonl", text('"one"', '"two"'), "DATA-SHAPE", "must be an object"),
    Bad(38, "object.json", text('{\n  "prompt": "a",\n  "completion": "b"\n}'), "DATA-ONE-OBJECT", "one object", is_error=False, verdict="look"),
    Bad(39, "mixed_type.jsonl", rows({"text": "a good row"}, {"text": 7}), "DATA-FIELD", "line 2 `text` is a number",
        is_error=False, verdict="not-trainable"),
    Bad(40, "mixed_schema.jsonl", rows({"text": "a"}, _PC), "DATA-SHAPE", "2 formats", is_error=False, verdict="not-trainable"),
    Bad(41, "mixed_nested.jsonl", rows(chat(("user", "a"), ("assistant", "b")), chat(("user", ["a"]), ("assistant", "b"))), "DATA-FIELD",
        "content is a list", is_error=False, verdict="not-trainable"),
    Bad(42, "msg_str.jsonl", rows({"messages": json.dumps([{"role": "user", "content": "a"}])}), "DATA-NESTED", "JSON written inside a text",
        is_error=False, verdict="not-trainable"),
    Bad(43, "wrong_columns.jsonl", rows({"foo": "a", "bar": "b"}), "DATA-COLS", "foo, bar"),
    Bad(44, "role_missing.jsonl", rows({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}), "DATA-ROLE", "essage 1 has no role"),
    Bad(45, "role_none.jsonl", rows(chat((None, "a"), ("assistant", "b"))), "DATA-ROLE", "essage 1 has no role"),
    Bad(46, "role_unknown.jsonl", rows(chat(("banana", "a"), ("assistant", "b"))), "DATA-ROLE", "banana"),
    Bad(47, "sharegpt.jsonl", rows({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}), "DATA-ROLES",
        "human → user, gpt → assistant", is_error=False, verdict="look"),
    Bad(48, "content_none.jsonl", rows(chat(("user", "a"), ("assistant", None))), "DATA-FIELD", "content is empty"),
    Bad(49, "messages_empty.jsonl", rows(*_GOOD, {"messages": []}), "DATA-SHAPE", "line 13 has no messages", is_error=False, verdict="not-trainable"),
    Bad(50, "no_assistant.jsonl", rows(*[chat(("user", f"Hello {n}")) for n in range(12)]), "DATA-LABEL", "no assistant turn",
        is_error=False, verdict="not-trainable"),
    Bad(51, "two_assistants.jsonl", rows(*_GOOD, chat(("assistant", "Hi."), ("assistant", "There."), ("user", "?"), ("assistant", "!"))), "DATA-ORDER",
        "two turns in a row", is_error=False, verdict="look"),
    Bad(52, "prompt_only.jsonl", rows({"prompt": "a"}), "DATA-COLS", "prompt"),
    Bad(53, "prompt_mixed.jsonl", rows({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}), "DATA-FIELD", "`completion` is a list"),
    Bad(54, "completion_empty.jsonl", rows({"prompt": "a", "completion": ""}, {"prompt": "b", "completion": " "}), "DATA-LABEL-EMPTY", "2 rows",
        is_error=False, verdict="not-trainable"),
    Bad(55, "text_empty.jsonl", rows({"text": ""}, {"text": " "}), "DATA-LABEL", "no text", is_error=False, verdict="not-trainable"),
    Bad(56, "all_masked.jsonl", rows(*[chat(("user", f"{n} " + "word " * 60), ("assistant", "Yes.")) for n in range(12)]), "DATA-ANSWER-LOST",
        "100 %", is_error=False, verdict="not-trainable", data={"max_length": 16}),
    Bad(57, "half_masked.jsonl", rows(*[chat(("user", f"{n} " + "word " * (60 if n % 2 else 1)), ("assistant", "Yes.")) for n in range(8)]),
        "DATA-ANSWER-LOST", "4 of 8", is_error=False, verdict="look", data={"max_length": 64}),
    Bad(58, "special_tokens.jsonl", rows(*_GOOD, chat(("user", "What is <|im_end|>?"), ("assistant", "A mark."))), "DATA-SPECIAL", "<|im_end|>",
        is_error=False, verdict="look"),
    Bad(59, "kwargs_column.jsonl", rows({**_GOOD[0], "chat_template_kwargs": {"chat_template": "PWNED"}}), "DATA-COLS", "chat_template_kwargs",
        is_error=False, verdict="look"),
    Bad(60, "tools_bad_json.jsonl", rows({**_GOOD[0], "tools": "{not json"}), "DATA-FIELD", "`tools`"),
    Bad(61, "images.jsonl", rows({**_GOOD[0], "images": ["a.png"]}), "DATA-COLS", "images"),
    Bad(62, "ids_out_of_vocab.jsonl", rows({"input_ids": [1, 999_999_999], "labels": [1, 2]}), "DATA-COLS", "input_ids"),
    Bad(63, "quote.csv", raw(b'prompt,completion\n"a,b\nc,d\n'), "DATA-CSV", "never closed"),
    Bad(63, "ragged.csv", raw(b"prompt,completion\na,b\nc,d,e\n"), "DATA-CSV", "line 3 has 3 fields", is_error=False, verdict="not-trainable"),
    Bad(63, "semi.csv", raw(b"prompt;completion\na, then;b\nc;d, too\n"), "DATA-DELIMITER", "semicolon", is_error=False, verdict="look"),
    Bad(63, "dupcol.csv", raw(b"prompt,text,text\na,b,c\n"), "DATA-CSV", "“text” is there twice"),
    Bad(64, "formula.csv", raw(b"prompt,completion\n=1+1,=cmd|' /C calc'!A0\n"), "DATA-TINY", "1 row", is_error=False, verdict="look"),
    Bad(65, "folder", _folder, "DATA-TYPE", "folder"),
    Bad(72, "words.jsonl", text("Dear diary,", "today it rained."), "DATA-JSON", "plain text belongs into a .txt file"),
)  # fmt: skip

_YAML_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

PRESETS: tuple[tuple[int, str, str], ...] = (
    (66, "python object", "lora: !!python/object/apply:os.system ['true']\n"),
    (67, "alias bomb", _YAML_BOMB),
    (68, "NaN learning rate", "train:\n  learning_rate: .nan\n"),
    (68, "rank 0", "lora:\n  rank: 0\n"),
    (68, "unknown key", "lora:\n  rnak: 8\n"),
    (68, "not a mapping", "- 1\n- 2\n"),
    (68, "two megabytes", "# " + "x" * 2_000_000 + "\n"),
    (68, "bf16 and fp16 both", "train:\n  bf16: true\n  fp16: true\n"),
)

PRESET_NAMES: tuple[tuple[int, str], ...] = (
    (68, "../evil"),
    (68, "../../etc/passwd"),
    (68, "/etc/passwd"),
    (68, "..\\evil"),
    (68, "a/../../b"),
)
"""Names that would leave the folder of presets."""

TEMPLATES: tuple[tuple[int, str, str, str], ...] = (
    (69, "nested range", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "TPL-TIMEOUT"),
    (70, "three gigabytes", "{{ 'a' * 3000000000 }}", "TPL-LIMIT"),
    (71, "reaches inside", "{{ ''.__class__.__mro__ }}", "TPL-UNSAFE"),
    (71, "syntax", "{% for m in messages %}{{ m['content'] }}\n{% endfo %}", "TPL-SYNTAX"),
    (71, "one megabyte", "{# " + "x" * 1_000_000 + " #}", "TPL-LIMIT"),
)


def write_all(folder: Path) -> None:
    """Write every bad dataset to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for bad in DATASETS:
        bad.make(folder / bad.name)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
    for bad in DATASETS:
        print(f"{bad.number:>3}  {bad.name:<26} {bad.code:<18} {bad.place}")
