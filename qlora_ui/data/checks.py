"""What can be told from the text alone, without a tokenizer: roles, empty turns, doubles, secrets, scripts."""

from __future__ import annotations

import itertools
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qlora_ui.data.languages import Languages
from qlora_ui.data.report import SHOWN_ROWS, Finding, Severity
from qlora_ui.data.similar import Similar

TINY_ROWS = 10
_CHUNK_ROWS = 2000
_CHUNK_CHARS = 1 << 20
_64_BITS = (1 << 64) - 1

_CONTROL = re.compile(
    r"<\|[a-z_0-9]{2,30}\|>|<[｜|][^<>\n]{2,40}[｜|]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>|<\|[A-Z_]{4,40}\|>"
)
EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b")
_SECRETS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}"), "a Hugging Face token"),
    ("sk-", re.compile(r"\bsk-(?:proj-|ant-|live-)?[A-Za-z0-9_-]{20,}"), "an API key (sk-…)"),
    ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b"), "an AWS key"),
    ("gh", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"), "a GitHub token"),
    ("github_pat_", re.compile(r"\bgithub_pat_[A-Za-z0-9_]{50,}"), "a GitHub token"),
    ("xox", re.compile(r"\bxox[abpr]-[A-Za-z0-9-]{20,}"), "a Slack token"),
    ("AIza", re.compile(r"\bAIza[0-9A-Za-z_-]{35}"), "a Google key"),
    ("-----BEGIN", re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"), "a private key"),
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}"), "a session token (JWT)"),
)

_ORDER_WORDS = {
    "starts": "An assistant speaks first",
    "twice": "The same speaker has two turns in a row",
    "late-system": "A system prompt stands after the start",
    "no-answer-last": "The last turn is not the assistant's and is not learned from",
    "orphan-tool": "A tool answers that nobody called",
}


def order_problems(roles: tuple[str, ...]) -> tuple[str, ...]:
    """What is odd about the order of speakers: keys of `_ORDER_WORDS`."""
    found = []
    spoken = [role for role in roles if role != "system"]
    if "system" in roles[1:]:
        found.append("late-system")
    if spoken and spoken[0] == "assistant":
        found.append("starts")
    if any(first == second != "tool" for first, second in itertools.pairwise(spoken)):
        found.append("twice")
    if any(role == "tool" and (not at or spoken[at - 1] not in ("assistant", "tool")) for at, role in enumerate(spoken)):
        found.append("orphan-tool")
    if spoken and spoken[-1] != "assistant" and "assistant" in spoken:
        found.append("no-answer-last")
    return tuple(found)


def _calls_of(messages: list[dict[str, Any]]) -> str:
    calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    return "\n".join(f"{call['name']} {call['arguments']}" for call in calls)


def _thinking_of(messages: list[dict[str, Any]]) -> str:
    return "\n".join(message["reasoning_content"] for message in messages if "reasoning_content" in message)


def _context_of(normal: Mapping[str, Any]) -> str:
    """System prompts and tools of a row. They stay out of its text, since a long prompt that all rows share would make them all alike."""
    prompts = [message["content"] for message in normal["messages"] if message["role"] == "system"]
    return "\n".join([*prompts, str(normal["tools"])] if normal.get("tools") else prompts)


class TextChecks:
    """Takes rows one by one, tells findings at the end."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.flags: dict[str, array[int]] = {}
        """By kind: the numbers of the rows."""
        self._order: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._texts: list[str] = []
        self._searched: list[str] = []
        """The texts with system prompts, thinking and tool calls: what must not be learned may stand in any of them."""
        self._compared: list[str] = []
        """The texts with the tool calls, which tell rows apart."""
        self._contexts = array("Q")
        """Hashes of system prompts and tools: what is said under another one is not nearly the same."""
        self._numbers: list[int] = []
        self._num_chars = 0
        self._hashes = array("q")
        self._all_numbers = array("q")
        self._similar = Similar()
        self._languages = Languages()
        self._control: Counter[str] = Counter()

    def add(self, number: int, normal: Mapping[str, Any], line: bytes) -> None:
        """Look at one standard row; `line` is all of it as JSON."""
        self.num_rows += 1
        messages = normal.get("messages")
        calls = context = ""
        if messages is not None:
            text = self._look_at_turns(number, messages)
            # A look at the bytes first: most rows have neither, and this runs for each of millions.
            if b'"tool_calls"' in line:
                calls = _calls_of(messages)
            if b'"system"' in line or b'"tools"' in line:
                context = _context_of(normal)
        else:
            text = normal["text"]
            if not text or text.isspace():
                self._flag("empty-text", number)
        self._hashes.append(hash(line))
        self._texts.append(text)
        compared = f"{text}\n{calls}" if calls else text
        thinking = _thinking_of(messages) if messages is not None and b'"reasoning_content"' in line else ""
        self._searched.append("\n".join((compared, context, thinking)) if context or thinking else compared)
        self._compared.append(compared)
        self._contexts.append(hash(context) & _64_BITS)
        self._numbers.append(number)
        self._num_chars += len(self._searched[-1])
        if len(self._texts) >= _CHUNK_ROWS or self._num_chars > _CHUNK_CHARS:
            self._look_at_texts()

    def _look_at_turns(self, number: int, messages: list[dict[str, Any]]) -> str:
        roles = tuple([message["role"] for message in messages])
        problems = self._order.get(roles)
        if problems is None:
            problems = order_problems(roles)
            if "assistant" not in roles:
                problems = (*problems, "no-answer")
            if len(self._order) < 10_000:
                self._order[roles] = problems
        for problem in problems:
            self._flag(problem, number)
        said = []
        for message in messages:
            content = message["content"]
            if (not content or content.isspace()) and "tool_calls" not in message:
                self._flag("empty-answer" if message["role"] == "assistant" else "empty-turn", number)
            if message["role"] != "system":
                said.append(content)
        return "\n".join(said)

    def _flag(self, kind: str, number: int) -> None:
        rows = self.flags.get(kind)
        if rows is None:
            rows = self.flags[kind] = array("q")
        if not rows or rows[-1] != number:
            rows.append(number)

    def finish(self) -> None:
        """Look at the rows that wait for a full chunk."""
        if self._texts:
            self._look_at_texts()

    def _look_at_texts(self) -> None:
        texts, numbers = self._texts, self._numbers
        self._all_numbers.extend(numbers)
        self._similar.add(self._compared, np.array(self._contexts, dtype=np.uint64))
        self._languages.add(texts)
        together = "\n".join(self._searched)
        if "<" in together or "[INST]" in together:
            self._search(_CONTROL, "control", "<[")
        if "@" in together:
            self._search(EMAIL, "email", "@")
        for needle, pattern, words in _SECRETS:
            if needle in together and pattern.search(together):
                self._search(pattern, f"secret:{words}", needle[0])
        self._texts, self._searched, self._compared, self._numbers, self._num_chars = [], [], [], [], 0
        self._contexts = array("Q")

    def _search(self, pattern: re.Pattern[str], kind: str, signs: str) -> None:
        for number, text in zip(self._numbers, self._searched, strict=True):
            if any(sign in text for sign in signs) and (match := pattern.search(text)):
                self._flag(kind, number)
                if kind == "control":
                    self._control[match[0]] += 1

    def scripts(self) -> dict[str, float]:
        """Share of letters by script."""
        return self._languages.scripts()

    def languages(self) -> dict[str, float]:
        """Rough share of rows by language."""
        return self._languages.languages()

    def findings(self, folder: Path, source: str) -> list[Finding]:
        """Everything found; the full lists of rows go to `flags.npz` in `folder`, for the fix buttons."""
        numbers = np.array(self._all_numbers, dtype=np.int64)
        self._doubles(numbers)
        found = [*self._turns(), *self._texts_found(), *self._alike()]
        if self.num_rows < TINY_ROWS:
            found.append(
                ("DATA-TINY", "warning", self.num_rows, (), f"Only {self.num_rows} {'row' if self.num_rows == 1 else 'rows'}.",
                 "A model learns so few by heart and little else; too few are held back to check it.", "Use at least some dozens.", None)
            )  # fmt: skip
        by_code = {f"{code}": np.array(rows, dtype=np.int64) for code, _, _, rows, *_ in found if len(rows)}
        np.savez(folder / "flags.npz", **by_code)  # type: ignore[arg-type]
        return [
            Finding(code, severity, count, tuple(int(row) for row in rows[:SHOWN_ROWS]), what, why, fix, action, source)
            for code, severity, count, rows, what, why, fix, action in found
        ]

    def _doubles(self, numbers: np.ndarray[Any, Any]) -> None:
        hashes = np.array(self._hashes, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
        doubled = np.sort(order[same])
        self.flags["duplicate"] = array("q", numbers[doubled].tolist())
        near = self._similar.near_duplicates()
        near = near[~np.isin(near, doubled)]
        self.flags["near"] = array("q", numbers[near].tolist())

    def _turns(self) -> list[_Found]:
        found: list[_Found] = []
        for kind, words in _ORDER_WORDS.items():
            if rows := self.flags.get(kind):
                code = "DATA-ORDER" if kind == "twice" else f"DATA-ORDER-{kind.upper()}"
                why = "Most templates expect user and assistant in turns."
                fix = "Look at the rows; drop them if the order is wrong."
                found.append((code, "warning", len(rows), rows, f"{words} in {_count(rows)}.", why, fix, _drop(code)))
        if rows := self.flags.get("no-answer"):
            found.append(self._label("DATA-LABEL", rows, "no assistant turn, so nothing to learn from", "Such rows would be left out."))
        if rows := self.flags.get("empty-answer"):
            found.append(self._label("DATA-LABEL-EMPTY", rows, "an empty answer", "The model would learn to say nothing and stop."))
        if rows := self.flags.get("empty-text"):
            found.append(self._label("DATA-LABEL", rows, "no text", "There is nothing to learn from."))
        if rows := self.flags.get("empty-turn"):
            found.append(
                ("DATA-EMPTY-TURN", "warning", len(rows), rows, f"A turn of the user, system or a tool is empty in {_count(rows)}.",
                 "An answer to nothing teaches to make things up.", "Leave such rows out.", _drop("DATA-EMPTY-TURN"))
            )  # fmt: skip
        return found

    def _label(self, code: str, rows: array[int], has: str, why: str) -> _Found:
        everything = len(rows) == self.num_rows
        severity: Severity = "error" if everything else "warning"
        what = f"{_count(rows)[:1].upper()}{_count(rows)[1:]} {'has' if len(rows) == 1 else 'have'} {has}."
        fix = "Use data with answers, or map the column that holds them." if everything else "Leave such rows out."
        return (code, severity, len(rows), rows, what, why, fix, None if everything else _drop(code))

    def _texts_found(self) -> list[_Found]:
        found: list[_Found] = []
        if rows := self.flags.get("control"):
            common = ", ".join(token for token, _ in self._control.most_common(3))
            what = f"Control tokens of chat templates stand inside the text of {_count(rows)}: {common}."
            why = "A model that has them takes them for the end of a turn."
            action = {"action": "set", "path": "data.neutralize_special_tokens", "value": True}
            found.append(("DATA-SPECIAL", "warning", len(rows), rows, what, why, "Disarm them, or drop the rows.", action))
        secrets = {kind.split(":", 1)[1]: rows for kind, rows in self.flags.items() if kind.startswith("secret:")}
        if secrets:
            every = array("q", sorted({row for rows in secrets.values() for row in rows}))
            kinds = ", ".join(secrets)
            what = f"{kinds[:1].upper()}{kinds[1:]} in {_count(every)}."
            fix = "Drop the rows, and replace the secret where it is used."
            why = "What a model learns it can repeat to anybody."
            found.append(("DATA-SECRET", "warning", len(every), every, what, why, fix, _drop("DATA-SECRET")))
        if rows := self.flags.get("email"):
            found.append(
                ("DATA-EMAIL", "note", len(rows), rows, f"E-mail addresses in {_count(rows)}.",
                 "A model can repeat addresses that it learned.", "Replace them by placeholders, or drop the rows.",
                 {"action": "mask-email", "code": "DATA-EMAIL"})
            )  # fmt: skip
        return found

    def _alike(self) -> list[_Found]:
        found: list[_Found] = []
        for kind, code, words, limit in (
            ("duplicate", "DATA-DUPLICATE", "the same as an earlier row", 0.01),
            ("near", "DATA-NEAR-DUPLICATE", "nearly the same as an earlier row", 0.05),
        ):
            rows = self.flags[kind]
            if rows:
                severity: Severity = "warning" if len(rows) > limit * self.num_rows else "note"
                verb = "is" if len(rows) == 1 else "are"
                found.append(
                    (code, severity, len(rows), rows, f"{_count(rows)[:1].upper()}{_count(rows)[1:]} {verb} {words}.",
                     "Repeated rows weigh more, are learned by heart, and make the check on held-back rows look too good.",
                     "Keep the first of each.", _drop(code))
                )  # fmt: skip
        return found


_Found = tuple[str, Severity, int, "array[int] | tuple[int, ...]", str, str, str, Mapping[str, Any] | None]


def _count(rows: array[int]) -> str:
    return f"row {rows[0]}" if len(rows) == 1 else f"{len(rows):,} rows"


def _drop(code: str) -> dict[str, Any]:
    return {"action": "drop", "code": code}
