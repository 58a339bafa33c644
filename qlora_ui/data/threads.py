"""Conversations that a dataset keeps as trees: one message a row with its parent, replies inside replies, a chat service's export."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import MIB, format_bytes
from qlora_ui.catalog.formats.format import ROLES, RowProblem
from qlora_ui.data.row_stream import Item, Notice

_HELD_BYTES = 256 * MIB
"""Text that is held while the messages of a file are put together; the child may hold four times as much."""
_LONGEST = 1000


@dataclass(slots=True)
class _Message:
    number: int
    role: str
    text: str
    rank: float
    replies: list[str]


def is_message_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is one message of a longer talk, named by its id and its parent's (OpenAssistant's layout)."""
    return "message_id" in row and "parent_id" in row and "role" in row and isinstance(row.get("text"), str)


def joined(rows: Iterator[Item], notice: Notice) -> Iterator[Item]:
    """The rows; where the first of them is a message of a tree, the conversations that all of them make.

    From each first message the best rated reply is followed (the first where none is rated) to the last answer. Raises DataError
    where the texts are more than can be held.
    """
    first = next(rows, None)
    if first is None:
        return
    rows = itertools.chain((first,), rows)
    if isinstance(first[1], dict) and is_message_row(first[1]):
        yield from _joined(rows, notice)
    else:
        yield from rows


def _joined(rows: Iterator[Item], notice: Notice) -> Iterator[Item]:
    messages: dict[str, _Message] = {}
    parents: list[tuple[str, str]] = []
    held = 0
    for number, row in rows:
        if isinstance(row, RowProblem):
            yield number, row
            continue
        text, role = row.get("text"), ROLES.get(str(row.get("role", "")).lower(), "")
        if not isinstance(text, str) or role not in ("user", "assistant", "system") or row.get("deleted") is True:
            continue
        held += 2 * len(text) + 500
        if held > _HELD_BYTES:
            raise DataError(
                f"The file holds single messages, more than {format_bytes(_HELD_BYTES)} of them.",
                why="To put conversations together, all messages must be held at once.",
                fix="Split the file by conversation trees.",
                code="DATA-LIMIT",
            )
        rank = row.get("rank")
        rated = float(rank) if isinstance(rank, int | float) else float("inf")
        messages[str(row["message_id"])] = _Message(number, role, text, rated, [])
        parents.append((str(row["message_id"]), str(row["parent_id"]) if row.get("parent_id") else ""))
    roots = []
    for name, parent in parents:
        if parent in messages and parent != name:
            messages[parent].replies.append(name)
        else:
            roots.append(name)
    what = f"{len(messages):,} single messages were joined to {len(roots):,} conversations, each with its best rated replies."
    notice("DATA-THREADS", what)
    for root in roots:
        path = [messages[root]]
        while path[-1].replies and len(path) < _LONGEST:
            path.append(min((messages[name] for name in path[-1].replies), key=lambda message: message.rank))
        turns = [{"role": message.role, "content": message.text} for message in path]
        yield path[0].number, {"messages": _up_to_an_answer(turns)}


def _up_to_an_answer(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns without questions at the end that nobody answered; all of them where nothing was answered."""
    last = max((place for place, said in enumerate(turns) if said["role"] == "assistant"), default=len(turns) - 1)
    return turns[: last + 1]


def straightened(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose conversation is a tree as a row with messages; any other row as it is."""
    prompt = row.get("prompt")
    if isinstance(prompt, dict) and "replies" in prompt:
        return {"messages": _up_to_an_answer(_replies(prompt))}
    nodes = row.get("mapping")
    if isinstance(nodes, dict) and nodes and all(isinstance(node, dict) and "parent" in node for node in nodes.values()):
        return {"messages": _up_to_an_answer(_exported(nodes, row.get("current_node")))}
    return row


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    at: Any = node
    while isinstance(at, dict) and len(turns) < _LONGEST:
        turns.append({"role": at.get("role"), "content": at.get("text")})
        replies = [reply for reply in at.get("replies") or () if isinstance(reply, dict)]
        rated = [reply for reply in replies if isinstance(reply.get("rank"), int | float)]
        at = min(rated, key=lambda reply: float(reply["rank"])) if rated else next(iter(replies), None)
    return turns


def _exported(nodes: dict[str, Any], current: Any) -> list[dict[str, Any]]:
    """The branch of a ChatGPT export that was last looked at, from its end up to its start."""
    turns: list[dict[str, Any]] = []
    at: Any = current if current in nodes else next(reversed(nodes))
    for _ in range(min(len(nodes), _LONGEST)):
        node = nodes.get(at)
        if not isinstance(node, dict):
            break
        message = node.get("message")
        if isinstance(message, dict) and (text := _text_of_export(message)):
            author = message.get("author")
            turns.append({"role": author.get("role") if isinstance(author, dict) else author, "content": text})
        at = node.get("parent")
    turns.reverse()
    return [said for said in turns if said["role"] in ("user", "assistant", "system")]


def _text_of_export(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return "\n".join(part for part in parts if isinstance(part, str)).strip() if isinstance(parts, list) else ""
