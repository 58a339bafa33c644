"""What is wrong with a line that is no JSON, in words: parsers only say where they gave up."""

from __future__ import annotations

import json
import re
from typing import Any

from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data.row_stream import Notice

MAX_DEPTH = 32
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode(raw: bytes) -> str:
    """The bytes as text; raises RowProblem with the place of the first byte that is not UTF-8, counted from 1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        zeros = raw.count(0)
        if zeros and zeros > len(raw) // 4:
            raise RowProblem("DATA-UTF8", "looks like UTF-16, not UTF-8", fix="Save the file as UTF-8.") from None
        byte = raw[error.start]
        raise RowProblem(
            "DATA-UTF8",
            f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8",
            fix="Save the file as UTF-8; it may be in an old Windows or Latin-1 encoding.",
        ) from None


def too_deep(value: Any) -> bool:
    """Whether a JSON value is nested deeper than MAX_DEPTH; works without recursion, so that depth cannot hurt."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def depth_problem() -> RowProblem:
    """The refusal of deep nesting."""
    return RowProblem("DATA-LIMIT", f"is nested deeper than {MAX_DEPTH} levels", fix="Flatten the row or drop it.")


def careful_loads(raw: bytes, notice: Notice) -> Any:
    """The value of a line that the fast parser refused, if it is harmless after all (huge numbers, NaN); else RowProblem.

    Also told: doubled keys, lone surrogates, deep nesting.
    """
    text = decode(raw)
    if "\0" in text:
        raise RowProblem("DATA-CTRL", f"has a NUL character at column {text.index(chr(0)) + 1}", fix="Remove it or drop the row.")

    def constant(name: str) -> None:
        note_nan(notice)

    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=constant)
    except RecursionError:
        raise depth_problem() from None
    except json.JSONDecodeError as error:
        what, position = explain(text, error.msg, error.pos)
        raise RowProblem("DATA-JSON", f"column {position + 1}: {what}", fix="Correct the line or drop it.") from None
    except ValueError:  # An integer of thousands of digits.
        raise RowProblem("DATA-JSON", "holds a number with too many digits", fix="Write it as text or drop the row.") from None
    if "\\u" in text and _has_surrogate(value):
        raise RowProblem("DATA-UTF8", "has half a character (a lone surrogate)", fix="Write the text as UTF-8, or drop the row.")
    if too_deep(value):
        raise depth_problem()
    return value


def note_nan(notice: Notice) -> None:
    """What stands for no value where pandas wrote the file is read so; a column that is needed then says that it is empty."""
    notice("DATA-NAN", "NaN and Infinity, which JSON does not have, were read as empty (null).")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowProblem("DATA-JSON", f"has the key “{double[:40]}” twice", double, "Keep one of them.")
    return value


def _has_surrogate(value: Any) -> bool:
    level = [value]
    while level:
        following = []
        for item in level:
            if isinstance(item, str):
                if _SURROGATE.search(item):
                    return True
            elif isinstance(item, dict):
                following += [*item, *item.values()]
            elif isinstance(item, list):
                following += item
        level = following
    return False


def explain(text: str, message: str, position: int) -> tuple[str, int]:
    """What is wrong and where (counted from 0), from the parser's own message and position and the characters around it."""
    at = min(position, len(text))
    rest = text[at : at + 2]
    before = text[:at].rstrip()
    if rest[:1] == "'" or (message.startswith("Expecting property name") and "'" in rest):
        return "single quotes: this is Python, not JSON, which wants double quotes", at
    if rest in ("//", "/*") or rest[:1] == "#":
        return "a comment; JSON has none", at
    if (before.endswith(",") and rest[:1] in ("}", "]")) or "trailing comma" in message:
        return "a trailing comma before the closing bracket", max(len(before) - 1, 0)
    if message.startswith("Unterminated string"):
        return "unfinished string: the line ends inside quotes", at
    if at >= len(text.rstrip()):
        return "the line ends too early", at
    if message.startswith("Invalid control character"):
        return "a line break or tab inside quotes must be written as \\n or \\t", at
    if message.startswith("Extra data"):
        return "more text after the end of the object: one object a line", at
    if message.startswith("Invalid \\"):
        return "a backslash that starts no known escape; write it as \\\\", at
    if re.match(r"True|False|None|undefined", text[at : at + 9]):
        return f"“{re.match('[A-Za-z]+', text[at:])[0]}” is Python, not JSON; write true, false or null", at  # type: ignore[index]
    if not before and message.startswith("Expecting value"):
        start = text[at : at + 24].strip()
        return f"“{start}” begins no JSON: a row is an object in curly brackets; plain text belongs into a .txt file", at
    return f"{message[:1].lower()}{message[1:]}, found “{text[at : at + 12].strip()}”", at
