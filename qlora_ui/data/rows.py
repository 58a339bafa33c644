"""Conversations: what every source and format becomes before anything else looks at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    """system, user, assistant or tool."""
    content: str
    thinking: str = ""
    """What a reasoning model thinks before its answer."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    tool_call_id: str = ""
    is_learned: bool = True
    """False for an answer that its dataset gives the weight 0: the model reads it and does not learn it."""

    def in_words(self) -> str:
        """What the turn says, each call of a tool as its JSON."""
        calls = [json.dumps(call.get("function"), ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(filter(None, [self.content, *calls]))

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates take it; absent parts have no key."""
        value: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            value["reasoning_content"] = self.thinking
        if self.tool_calls:
            value["tool_calls"] = list(self.tool_calls)
        if self.name:
            value["name"] = self.name
        if self.tool_call_id:
            value["tool_call_id"] = self.tool_call_id
        if not self.is_learned:
            value["weight"] = 0
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """The message from its standard form."""
        if len(value) == 2:
            return cls(value["role"], value["content"])
        return cls(
            value["role"],
            value["content"],
            value.get("reasoning_content", ""),
            tuple(value.get("tool_calls", ())),
            value.get("name", ""),
            value.get("tool_call_id", ""),
            value.get("weight") != 0,
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: turns, or plain text where there are none."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    """Plain text for continued pre-training; then there are no messages."""
    source: str = ""
    row: int = 0
    """Its number in the source, counted from 1: the line of a JSONL, the row of a table."""

    def as_dict(self) -> dict[str, Any]:
        """The row of a JSONL that TRL reads: `{"messages": [...]}`, with `"tools"` where there are some, or `{"text": ...}`."""
        if self.text is not None:
            return {"text": self.text}
        value: dict[str, Any] = {"messages": [message.as_dict() for message in self.messages]}
        if self.tools:
            value["tools"] = list(self.tools)
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], source: str = "", row: int = 0) -> Conversation:
        """The conversation from its standard form."""
        messages = tuple(Message.from_dict(message) for message in value.get("messages", ()))
        return cls(messages, tuple(value.get("tools") or ()), value.get("text"), source, row)

    def as_line(self) -> str:
        """`as_dict` as one line of JSON, without its end."""
        return json.dumps(self.as_dict(), ensure_ascii=False, separators=(",", ":"))
