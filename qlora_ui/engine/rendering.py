"""From messages to the text that a template makes of them, and which parts of it are the assistant's.

The template is never read, only run: what an answer is follows from the difference between renderings with and without
it. So the spans are right for templates that add a default system prompt, drop earlier thinking or trim the text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from qlora_ui.base.errors import ModelError
from qlora_ui.data.rows import Conversation
from qlora_ui.data.template_check import check_template

# Private-use characters: in no text, and trimmed by no template.
_MARK = "\ue000answer\ue001"
_ASK = "\ue002question\ue003"
DATE_CALL = re.compile(r"""strftime_now\(\s*["']([^"']*)["']\s*\)""")
"""How templates ask for the date; the group is its form."""
# Of a tool in a list, of a call and of a thought: letters that JSON and Python write as they are.
_LISTED, _NAME, _THOUGHT = "probe_listed", "probe_called", "probe of a thought"

Turn = dict[str, Any]
Span = tuple[int, int]


def _as_of(day: date, source: str) -> str:
    """A template with that day in the place of today; transformers hands a template no clock but the real one."""
    return DATE_CALL.sub(lambda call: json.dumps(day.strftime(call[1]), ensure_ascii=False), source)


class RowRefused(Exception):
    """The template cannot write this conversation; the reason in words."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the parts that answers take up, end tokens included."""

    text: str
    spans: tuple[Span, ...]
    lost: tuple[frozenset[str], ...] = ()
    """Of each answer, what the template leaves out: `thought`, `call`, `words`."""


class Renderer:
    """Runs a tokenizer's chat template; learns at the start what the template can do.

    A template that writes the date writes that of `day`; without one, what day it is when it writes.
    """

    def __init__(self, tokenizer: Any, *, neutralize: bool = False, day: date | None = None) -> None:
        self.tokenizer = tokenizer
        self.neutralize = neutralize
        template = tokenizer.chat_template
        if not template:
            raise ModelError(
                "This model has no chat template: it says nowhere how turns become text.",
                fix="Choose a chat template; ChatML is a good standard.",
                where="model.template",
                code="TPL-NONE",
            )
        self._templates: dict[str, str] = template if isinstance(template, dict) else {"default": template}
        for source in self._templates.values():
            check_template(source)
        if day is not None:
            self._templates = {name: _as_of(day, source) for name, source in self._templates.items()}
        self._constants: Mapping[str, Any] = tokenizer.special_tokens_map
        self._special = special_pattern(tokenizer)
        self._trailing = re.compile(rf"(?:{self._special.pattern}|\s)+$")
        try:
            self._probe()
        except RowRefused as error:
            raise ModelError(
                "This model's chat template cannot write a question with its answer.",
                why=str(error),
                fix="Choose another chat template; ChatML is a good standard.",
                where="model.template",
                code="TPL-REFUSES",
            ) from None

    def _probe(self) -> None:
        ask = {"role": "user", "content": _ASK}
        answer = {"role": "assistant", "content": _MARK}
        self.has_system = self._writes(_MARK, [{"role": "system", "content": _MARK}, ask])
        tool = {"type": "function", "function": {"name": _LISTED, "description": "", "parameters": {"type": "object", "properties": {}}}}
        self.knows_tool_list = self._writes(_LISTED, [ask], [tool])
        self._knows_thinking = self._writes(_THOUGHT, [ask, {**answer, "reasoning_content": _THOUGHT}])
        # Beside a list of tools another template may serve than without one.
        self._knows_calls = {True: self._writes_calls(ask, [tool]), False: self._writes_calls(ask, None)}
        self._wants_short_ids = any(self._knows_calls.values()) and not self._writes_calls(ask, [tool], "call_of_another_length")
        whole = self.render([ask, answer])
        prompt = self.render([ask], prompt=True)
        tail = whole.rpartition(_MARK)[2]
        special = self._special.search(tail)
        self.end = tail[: special.end()] if special else tail.rstrip()
        """What the template writes after an answer, up to its end token: `<|im_end|>`; may be empty."""
        self.filler = tail[len(self.end) :]
        self.header = prompt[_shared(self.render([ask]), prompt) :]
        """What asks for an answer: `<|im_start|>assistant` and a line break; empty where the template has none."""
        opened = self.header.rpartition("<think>")
        self._opened = opened[2] if opened[1] and not opened[2].strip() else None
        """What follows the `<think>` with which an answer is asked for, such as a line break; None where the prompt opens no thought."""
        self.end_is_token = bool(special)
        # What the template writes between the prompt and the answer's first letter, such as a space; the model says it too.
        self._lead = whole.partition(_MARK)[0][len(prompt) :] if whole.startswith(prompt) else ""

    def _writes(self, mark: str, turns: list[Turn], tools: list[Any] | None = None) -> bool:
        """Whether the text of some turns has the mark that stands in them: many templates pass over what they do not know."""
        try:
            return mark in self.render(turns, tools)
        except RowRefused:
            return False

    def _writes_calls(self, ask: Turn, tools: list[Any] | None, call_id: str = "call00001") -> bool:
        """Whether a call of a tool is written, with words beside it and without, and what the tool answered."""
        call = {"type": "function", "id": call_id, "function": {"name": _NAME, "arguments": {"place": "here"}}}
        answered = {"role": "tool", "name": _NAME, "content": _MARK, "tool_call_id": call_id}
        called = [{"role": "assistant", "content": words, "tool_calls": [call]} for words in ("", "Let me look.")]
        return all(self._writes(_NAME, [ask, turn], tools) and self._writes(_MARK, [ask, turn, answered], tools) for turn in called)

    def render(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        """The text of some turns; `prompt` adds what asks for an answer. Raises RowRefused."""
        source = self._templates.get("tool_use" if tools else "default") or self._templates.get("default")
        if source is None:
            source = next(iter(self._templates.values()))
        try:
            texts, _ = render_jinja_template(
                [list(turns)], tools=list(tools) if tools else None, chat_template=source, add_generation_prompt=prompt, **self._constants
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise RowRefused(f"the chat template refuses it: {str(error)[:200] or type(error).__name__}") from None
        text: str = texts[0]
        return text

    # What a template takes ------------------------------------------------------------------------------------------

    def turns_of(self, conversation: Conversation) -> tuple[list[Turn], list[Any] | None]:
        """The messages as this template can take them: what it has no place for is written into the text."""
        tools: list[Any] | None = [dict(tool) for tool in conversation.tools] or None
        knows_calls = self._knows_calls[bool(tools) and self.knows_tool_list]
        turns = [self._turn(message.as_dict(), knows_calls) for message in conversation.messages]
        if not knows_calls:
            turns = _joined_results(turns, [message.role for message in conversation.messages])
        elif self._wants_short_ids:
            turns = _with_short_ids(turns)
        if tools and not self.knows_tool_list:
            listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
            turns = _with_system(turns, f"You may call these tools:\n{listed}")
            tools = None
        if not self.has_system and turns and turns[0]["role"] == "system":
            turns = _system_in_question(turns)
        return turns, tools

    def _turn(self, turn: Turn, knows_calls: bool) -> Turn:
        if self.neutralize:
            said = ("content", "reasoning_content", "tool_calls")
            turn |= {name: _disarmed_in(turn[name], self._special) for name in said if name in turn}
        if "reasoning_content" in turn and not self._knows_thinking:
            thinking = turn.pop("reasoning_content")
            turn["content"] = f"<think>\n{thinking.strip()}\n</think>\n\n{turn['content']}"
        if not knows_calls:
            if turn["role"] == "tool":
                turn = {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
            elif "tool_calls" in turn:
                calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.pop("tool_calls")]
                written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
                turn["content"] = f"{turn['content']}\n{written}" if turn["content"] else written
        return turn

    # Whose text it is -----------------------------------------------------------------------------------------------

    def rendered(self, conversation: Conversation) -> Rendered:
        """The text of a conversation and the spans of its answers; raises RowRefused."""
        turns, tools = self.turns_of(conversation)
        text = self.render(turns, tools)
        spans: list[Span] = []
        prompts: dict[int, str] = {}
        for position, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            after = spans[-1][1] if spans else 0
            start, end = self._span(text, turns, tools, position, after, prompts)
            if not after <= start <= end <= len(text):
                raise RowRefused("the chat template moves its turns around, so that answers cannot be told apart")
            spans.append((start, end))
        text, spans = self._as_asked(text, spans, turns, prompts.get(len(turns) - 1, ""))
        answers = [turn for turn in turns if turn["role"] == "assistant"]
        lost = (_lost(turn, text[start:end]) for turn, (start, end) in zip(answers, spans, strict=True))
        return Rendered(text, tuple(spans), tuple(lost))

    def _as_asked(self, text: str, spans: list[Span], turns: list[Turn], prompt: str) -> tuple[str, list[Span]]:
        """The last answer behind the very prompt that asks for it in a chat, where the finished turn stands behind another one.

        Mistral's templates write the system prompt only into a question that is the last turn: behind an answer it is gone. DeepSeek-R1's
        asks with an opened thought and drops the thoughts of every answer. Learned like that, the answer would stand behind a prompt that
        no chat asks with, and what the data says or thinks would be lost.
        """
        if not prompt or text.startswith(prompt) or (self._opened is not None and "tool_calls" in turns[-1]):
            return text, spans
        shared = _shared(text, prompt)
        if any(end > shared for _, end in spans[:-1]):
            return text, spans
        start, end = spans[-1]
        said = text[start:end]
        if self._opened is not None and prompt.startswith(text[:start]):
            thought, answer = _thought_of(turns[-1])
            said = f"{thought}{self._opened}</think>{2 * self._opened}{answer}{self.end}"
        elif not (prompt.endswith(self.header) and text.endswith(self.header, 0, start)):
            return text, spans  # Another answer than the one that is asked for, such as one that was thought over.
        return prompt + said + text[end:], [*spans[:-1], (len(prompt), len(prompt) + len(said))]

    def _span(  # noqa: PLR0917
        self, text: str, turns: list[Turn], tools: list[Any] | None, position: int, after: int, prompts: dict[int, str]
    ) -> Span:
        """Where an answer stands; what asks for it is kept in `prompts`."""
        start = self._start_by_prefix(text, turns, tools, position, prompts)
        end = self._end_by_prefix(text, turns, tools, position) if start is not None else None
        if start is None or end is None or start < after:
            by_mark = self._by_mark(text, turns, tools, position, after)
            start = by_mark[0] if start is None or start < after else start
            end = by_mark[1] if end is None else end
        return start, self._end_of_turn(text, start, end)

    def _start_by_prefix(self, text: str, turns: list[Turn], tools: list[Any] | None, position: int, prompts: dict[int, str]) -> int | None:
        if not position:
            return None
        try:
            prompt = prompts[position] = self.render(turns[:position], tools, prompt=True)
        except RowRefused:
            return None
        if text.startswith(prompt):
            return len(prompt)
        # A prompt that opens a thinking block which the finished turn does not have: the part that both share counts.
        try:
            before = self.render(turns[:position], tools)
        except RowRefused:
            return None
        header = prompt[len(before) :] if prompt.startswith(before) else ""
        if not header or not text.startswith(before):
            return None
        shared = _shared(text[len(before) : len(before) + len(header)], header)
        stops = [match.end() for match in self._special.finditer(header)] + [at + 1 for at, sign in enumerate(header) if sign == "\n"]
        whole = [stop for stop in stops if stop <= shared]
        return len(before) + max(whole) if whole else None

    def _end_by_prefix(self, text: str, turns: list[Turn], tools: list[Any] | None, position: int) -> int | None:
        if position == len(turns) - 1:
            return len(text)
        try:
            upto = self.render(turns[: position + 1], tools)
        except RowRefused:
            return None
        return len(upto) if text.startswith(upto) else None

    def _by_mark(self, text: str, turns: list[Turn], tools: list[Any] | None, position: int, after: int) -> Span:
        """The span found by putting a mark in place of the answer: what both texts share around it is not the answer."""
        marked = list(turns)
        marked[position] = {"role": "assistant", "content": _MARK}
        other = self.render(marked, tools)
        shared = _shared(text, other)
        limit = min(len(text), len(other)) - shared
        same = _shared(text[::-1][:limit], other[::-1][:limit])
        start, content_end = shared, len(text) - same
        if self.header:
            found = text.rfind(self.header, after, shared + len(self.header))
            start = found + len(self.header) if found >= 0 else start
        elif self._lead and text.endswith(self._lead, 0, start):
            start -= len(self._lead)
        tail = text[content_end:]
        return start, content_end + (len(self.end) if tail.startswith(self.end) else 0)

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """The end of what a model says in this turn: its end token, without the line breaks a template puts after it."""
        said = text[start:end]
        if self.end:
            found = said.rfind(self.end)
            rest = said[found + len(self.end) :]
            if found >= 0 and (not rest.strip() or self._trailing.fullmatch(rest)):
                return start + found + len(self.end)
        run = self._trailing.search(said)
        if run and (last := [match.end() for match in self._special.finditer(run[0])]):
            return start + run.start() + last[-1]
        return end - len(self.filler) if not self.end and self.filler and said.endswith(self.filler) else end


def _thought_of(turn: Turn) -> tuple[str, str]:
    """What is thought and what is said in an answer, whether the thought has a place of its own or stands in the text."""
    content = str(turn["content"])
    if "reasoning_content" in turn:
        return str(turn["reasoning_content"]).strip(), content
    before, ends, said = content.rpartition("</think>")
    return (before.strip().removeprefix("<think>").strip(), said.lstrip("\n")) if ends else ("", content)


def _lost(turn: Turn, said: str) -> frozenset[str]:
    """What of an answer is not in the text that the template makes of it."""
    thought, words = _thought_of(turn)
    calls = [call["function"]["name"] for call in turn.get("tool_calls", ())]
    parts = [("thought", thought), ("words", words.strip()), *(("call", name) for name in calls)]
    return frozenset(kind for kind, part in parts if part not in said)


def _shared(one: str, two: str) -> int:
    """How many letters two texts share at their start."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the tokens that a text must not spell by accident, the longest first."""
    added = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted({token for token in {*added, *tokenizer.all_special_tokens} if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def disarmed(text: str, special: re.Pattern[str]) -> str:
    """The text with its control tokens broken by a space after their first sign, so that they are plain letters."""
    return special.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)


def _disarmed_in(value: Any, special: re.Pattern[str]) -> Any:
    """The same of every text in a call, whose arguments are lists and objects."""
    if isinstance(value, str):
        return disarmed(value, special)
    if isinstance(value, list | tuple):
        return [_disarmed_in(item, special) for item in value]
    return {name: _disarmed_in(item, special) for name, item in value.items()} if isinstance(value, Mapping) else value


def _with_system(turns: list[Turn], text: str) -> list[Turn]:
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _joined_results(turns: list[Turn], roles: list[str]) -> list[Turn]:
    """The turns with what several tools answered in one: as questions of their own they would follow each other, which templates refuse."""
    joined: list[Turn] = []
    for turn, role, before in zip(turns, roles, ["", *roles], strict=False):
        if role == before == "tool":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined


def _with_short_ids(turns: list[Turn]) -> list[Turn]:
    """The turns with ids of calls as Mistral's templates demand them, nine letters or digits, made of the data's own where it has some.

    A tool's answer without one belongs to the first call before it that has no answer yet.
    """
    changed, waiting = [], list[str]()
    for place, turn in enumerate(turns):
        more: Turn = {}
        if calls := turn.get("tool_calls"):
            waiting = [_short_id(str(call.get("id") or f"{place} {number}")) for number, call in enumerate(calls)]
            more = {"tool_calls": [{**call, "id": name} for call, name in zip(calls, waiting, strict=True)]}
        elif turn["role"] == "tool":
            given = turn.get("tool_call_id")
            name = _short_id(str(given)) if given else (waiting or [_short_id(str(place))])[0]
            more = {"tool_call_id": name}
            waiting = [other for other in waiting if other != name]
        changed.append({**turn, **more})
    return changed


def _short_id(name: str) -> str:
    return name if len(name) == 9 and name.isascii() and name.isalnum() else hashlib.sha256(name.encode()).hexdigest()[:9]


def _system_in_question(turns: list[Turn]) -> list[Turn]:
    """The system prompts put before the first question, as the makers of templates without system turns advise."""
    first = next((at for at, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    told, rest = "\n\n".join(turn["content"] for turn in turns[:first]), turns[first:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{told}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": told}, *rest]
