"""The fixed texts that a chat template puts between messages, found by asking it and proven before they are used.

Most templates join fixed texts with the messages' contents. Those texts are read off a few renderings, made by the functions
that training and the chat use, and compared with the template on many conversations. A template that does more is refused; what
only some conversations would show (trimmed blanks, dropped thoughts) becomes a remark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.rendering import DATE_CALL, Renderer, RowRefused

Messages = Sequence[Message]
_SYSTEM, _USER, _ANSWER, _MORE = "\u2042system\u2042", "\u2042user\u2042", "\u2042answer\u2042", "\u2042more\u2042"


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """What a template puts between the contents; the token that begins every text is not part of it, llama.cpp adds it."""

    before_user: str
    """In front of a conversation without a system prompt; a default one is in here."""
    before_system: str
    after_system: str
    before_answer: str
    """Between a question and an answer that was given."""
    answer_to_user: str
    prompt: str
    """Behind the last question; where it opens a thinking block it is more than `before_answer`."""
    system_is_last: bool
    """The system prompt stands inside the last question instead of in front of the first."""
    greeting: tuple[str, str] | None
    """In front of an answer that opens the conversation: without a system prompt and behind one; None where that is refused."""
    remarks: tuple[str, ...] = ()
    """Sentences about conversations that the texts write otherwise than the template does."""

    def render(self, messages: Messages) -> str:
        """A conversation as the texts write it, ready for the model's answer; all system prompts count as one, in front."""
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        text, has_begun = "", False
        for number, message in enumerate(messages):
            is_last = number == len(messages) - 1
            if message.role == "user":
                text += self._before_question(system, has_begun, is_last) + message.content
                has_begun = True
            elif message.role == "assistant" and (has_begun or self.greeting):
                text += (self.before_answer if has_begun else self._before_greeting(system)) + message.content
                has_begun = True
            if is_last and message.role != "assistant":
                text += self.prompt
        return text

    def _before_question(self, system: str, has_begun: bool, is_last: bool) -> str:
        before = self.answer_to_user if has_begun else self.before_user
        told = f"{self.before_system}{system}{self.after_system}" if system else ""
        if self.system_is_last:
            return before + (told if is_last else "")
        return told if told and not has_begun else before

    def _before_greeting(self, system: str) -> str:
        assert self.greeting is not None
        return f"{self.before_system}{system}{self.greeting[1]}" if system else self.greeting[0]


class _Template:
    """A tokenizer's chat template, asked as training asks it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.renderer = tokenizer, Renderer(tokenizer)
        bos = tokenizer.bos_token
        self.begin = bos if bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] else ""

    def write(self, *messages: Message) -> str | None:
        """The text up to the model's answer, without the token that begins it; None where the template refuses it."""
        try:
            turns, _ = self.renderer.turns_of(Conversation(messages))
            return self.renderer.render(turns, prompt=True).removeprefix(self.begin)
        except RowRefused:
            return None

    def parts(self, *messages: Message, order: Sequence[str] = ()) -> list[str] | None:
        """The texts around the contents, which must stand in this order; None where they do not."""
        rest, found = self.write(*messages) or "", []
        for content in order or [message.content for message in messages]:
            before, mark, rest = rest.partition(content)
            if not mark:
                return None
            found.append(before)
        return [*found, rest]

    def writes_the_date(self) -> bool:
        """Whether a rendering holds the date of today in a form that the template asks for."""
        source = self.tokenizer.chat_template
        text = self.write(Message("user", _USER)) or ""
        formats = DATE_CALL.findall(source if isinstance(source, str) else "".join(source.values()))
        return any(datetime.now().strftime(form) in text for form in formats)


def turn_texts(tokenizer: Any) -> TurnTexts:
    """The fixed texts of the tokenizer's chat template, proven on conversations with and without a system prompt.

    Raises ModelError where the template is absent or does more than join texts.
    """
    if not tokenizer.chat_template:
        raise _refused("The model has no chat template.")
    template = _Template(tokenizer)
    system, user, answer, more = _SAID
    plain = template.parts(user, answer, more)
    if plain is None:
        raise _refused("Its template changes or reorders what was said.")
    before_user, before_answer, answer_to_user, prompt = plain
    inside = template.parts(*_SAID, order=(_USER, _ANSWER, _SYSTEM, _MORE))
    if inside is not None:
        before_system, after_system = inside[2].removeprefix(answer_to_user), inside[3]
    else:
        before_system, after_system, *_ = template.parts(system, user) or ["", ""]
    greeting = None if inside else _greeting(template)
    texts = TurnTexts(before_user, before_system, after_system, before_answer, answer_to_user, prompt, inside is not None, greeting)
    for messages in sample_conversations(can_greet=greeting is not None):
        if texts.render(messages) != template.write(*messages):
            raise _refused(f"Its template does more than join texts, such as in a conversation of {len(messages)} messages.")
    return replace(texts, remarks=_remarks(texts, template))


_SAID = (Message("system", _SYSTEM), Message("user", _USER), Message("assistant", _ANSWER), Message("user", _MORE))


def _greeting(template: _Template) -> tuple[str, str] | None:
    """What stands in front of an answer that opens a conversation, where the template writes such ones."""
    system, user, answer, _ = _SAID
    plain, told = template.parts(answer, user), template.parts(system, answer, user)
    first = template.parts(system, user)
    if plain is None or told is None or first is None or told[0] != first[0]:
        return None
    return plain[0], told[1]


def _remarks(texts: TurnTexts, template: _Template) -> tuple[str, ...]:
    """What the template does beyond joining texts, as far as it is known."""
    padded = [Message("user", " a \n"), Message("assistant", " b \n"), Message("user", " c \n")]
    thought = [Message("user", "a"), Message("assistant", "<think>\nwhy\n</think>\n\nb"), Message("user", "c")]
    found = []
    if texts.render(padded) != template.write(*padded):
        found.append("Blanks around a message stay; the model's own template cuts them off.")
    if texts.render(thought) != template.write(*thought):
        found.append("Thoughts of earlier answers stay in the conversation; the model's own template leaves them out.")
    if template.writes_the_date():
        found.append("The date in the system prompt stays that of the export.")
    if template.renderer.knows_tool_list:
        found.append("It offers no tools.")
    return tuple(found)


def sample_conversations(*, can_greet: bool = False) -> list[list[Message]]:
    """Twenty conversations with everything that trips templates: line breaks, quotes, braces, other scripts, several turns."""
    contents = [
        "Hello",
        "two\nlines",
        'a "quote" and \\ backslash',
        "{{ .Content }} {% x %}",
        "Grüße 東京 👋",
        "a  b",
        "x" * 200,
        "1\n\n2",
        "<b>&amp;",
        "end.",
    ]
    found = []
    for number, content in enumerate(contents):
        for turns in (1, 2 + number % 2):
            messages = [Message("system", f"Be brief: {content}")] if number % 2 else []
            if can_greet and number in (2, 3):
                messages.append(Message("assistant", f"Ask: {content}"))
            for turn in range(turns):
                messages.append(Message("user", f"{content} {turn}"))
                if turn < turns - 1:
                    messages.append(Message("assistant", f"{content[::-1] if content.isascii() else content}!"))
            found.append(messages)
    return found


def _refused(why: str) -> ModelError:
    return ModelError(
        "No Ollama template can be written for this model.",
        why=why,
        fix="Export it as GGUF: llama.cpp and Ollama then use the template inside the file.",
        code="export-template",
    )
