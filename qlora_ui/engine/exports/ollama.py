"""A Modelfile whose template is the model's own, found by asking the tokenizer and proven before it is written.

Most chat templates join fixed texts with the messages' contents. Those texts are read off a few renderings, and the Go template
is written from them; then it is compared with the tokenizer on many conversations. A template that does more than that (tools,
dates, merging the system prompt into a question) is refused for the part that differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import write_text

_SYSTEM, _USER, _ANSWER, _MORE = "\u2042system\u2042", "\u2042user\u2042", "\u2042answer\u2042", "\u2042more\u2042"
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """What a template puts between the contents; the token that begins every text is not part of it, llama.cpp adds it."""

    before_user: str
    """In front of a conversation that begins with a question; a default system prompt is in here."""
    before_system: str
    system_to_user: str
    user_to_answer: str
    answer_to_user: str
    has_system: bool

    def render(self, messages: Messages) -> str:
        """A conversation as the Go template writes it, ready for the model's answer."""
        text = ""
        for number, message in enumerate(messages):
            before = {"system": self.before_system, "user": self.answer_to_user, "assistant": self.user_to_answer}[message["role"]]
            if message["role"] == "user" and number == 0:
                before = self.before_user
            elif message["role"] == "user" and messages[number - 1]["role"] == "system":
                before = self.system_to_user
            text += before + message["content"]
        return text + self.user_to_answer

    def go_template(self) -> str:
        """The same as a template of Ollama; every text stands in quotes, so that no line break is lost."""
        after_system = f'{{{{ else if and (eq $i 1) (eq $first "system") }}}}{_go(self.system_to_user)}' if self.has_system else ""
        system = f'{{{{ if eq .Role "system" }}}}{_go(self.before_system)}{{{{ .Content }}}}{{{{ end }}}}' if self.has_system else ""
        return (
            "{{ $first := (index .Messages 0).Role }}{{ range $i, $_ := .Messages }}"
            f"{system}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if eq $i 0 }}}}{_go(self.before_user)}{after_system}'
            f"{{{{ else }}}}{_go(self.answer_to_user)}{{{{ end }}}}{{{{ .Content }}}}{{{{ end }}}}"
            f'{{{{ if eq .Role "assistant" }}}}{_go(self.user_to_answer)}{{{{ .Content }}}}{{{{ end }}}}'
            f'{{{{ if and (eq (len (slice $.Messages $i)) 1) (ne .Role "assistant") }}}}{_go(self.user_to_answer)}{{{{ end }}}}'
            "{{ end }}"
        )


def turn_texts(tokenizer: Any) -> TurnTexts:
    """The fixed texts of the tokenizer's chat template, proven on conversations with and without a system prompt.

    Raises ModelError where the template is absent or does more than join texts.
    """
    if not tokenizer.chat_template:
        raise _refused("The model has no chat template.")
    user, answer, more = _message("user", _USER), _message("assistant", _ANSWER), _message("user", _MORE)
    text = _render(tokenizer, [user, answer, more])
    at = [text.find(mark) for mark in (_USER, _ANSWER, _MORE)]
    if not -1 < at[0] < at[1] < at[2]:
        raise _refused("Its template changes or reorders what was said.")
    with_system = _try_system(tokenizer, user)
    before_system, _, behind = with_system.partition(_SYSTEM)
    return _proven(
        TurnTexts(
            before_user=text[: at[0]],
            before_system=before_system,
            system_to_user=behind.partition(_USER)[0],
            user_to_answer=text[at[2] + len(_MORE) :],
            answer_to_user=text[at[1] + len(_ANSWER) : at[2]],
            has_system=bool(with_system),
        ),
        tokenizer,
    )


def write_modelfile(folder: Path, gguf_name: str, tokenizer: Any, stops: Sequence[str], licence: str) -> None:
    """Write the Modelfile beside the GGUF."""
    texts = turn_texts(tokenizer)
    lines = [
        f"# ollama create my-model -f Modelfile, in this folder{'' if texts.has_system else '. The model knows no system prompt.'}",
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{texts.go_template()}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
    ]
    if licence:
        lines.append(f'LICENSE """{licence}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def sample_conversations(has_system: bool = True) -> list[list[dict[str, str]]]:
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
            messages = [_message("system", f"Be brief: {content}")] if has_system and number % 2 else []
            for turn in range(turns):
                messages.append(_message("user", f"{content} {turn}"))
                if turn < turns - 1:
                    messages.append(_message("assistant", f"{content[::-1] if content.isascii() else content}!"))
            found.append(messages)
    return found


def _proven(texts: TurnTexts, tokenizer: Any) -> TurnTexts:
    for messages in sample_conversations(texts.has_system):
        if texts.render(messages) != _render(tokenizer, messages):
            raise _refused("Its template does more than join texts.")
    return texts


def _try_system(tokenizer: Any, user: Mapping[str, str]) -> str:
    """A rendering with a system prompt; empty where the template has no place of its own for one."""
    import jinja2

    try:
        text = _render(tokenizer, [_message("system", _SYSTEM), user])
    except (jinja2.TemplateError, ValueError):
        return ""
    return text if -1 < text.find(_SYSTEM) < text.find(_USER) else ""


def _render(tokenizer: Any, messages: Messages) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    adds_bos = bool(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds_bos else text


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _go(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _refused(why: str) -> ModelError:
    return ModelError(
        "No Ollama template can be written for this model.",
        why=why,
        fix="Export it as GGUF: llama.cpp and Ollama then use the template inside the file.",
        code="export-template",
    )
