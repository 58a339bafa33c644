"""A Modelfile whose template is the model's own, in the language of Go's text/template that Ollama fills in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_ui.base.files import write_text
from qlora_ui.engine.exports.turns import TurnTexts, turn_texts


def write_modelfile(
    folder: Path, gguf_name: str, tokenizer: Any, stops: Sequence[str], licence: str, *, system: str = ""
) -> tuple[str, ...]:
    """Write the Modelfile beside the GGUF; returns what of the model's own template it cannot do, in sentences.

    `system` is the system prompt that the adapter learned to answer after: Ollama puts it before conversations that have
    none. Raises ModelError where the template does more than join texts.
    """
    texts = turn_texts(tokenizer)
    lines = [
        "# ollama create my-model -f Modelfile, in this folder",
        *(f"# {remark}" for remark in texts.remarks),
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{go_template(texts)}"""',
        # Ollama cuts the outer quotes off, unescapes nothing, and drops letters that do not print.
        *(f'PARAMETER stop "{stop}"' for stop in stops if stop.isprintable()),
    ]
    remarks = texts.remarks
    if '"""' in system:  # a Modelfile has no other marks around a text of several lines
        remarks = (*remarks, "The run's system prompt holds three quotation marks in a row, which no Modelfile can: give it in the chat.")
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    if licence:
        lines.append(f'LICENSE """{licence}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    return remarks


def go_template(texts: TurnTexts) -> str:
    """The texts as a template of Ollama; every one stands in quotes, so that no line break is lost.

    `.System` holds all system prompts; messages of other roles (tool) are left out.
    """
    told = f"{_go(texts.before_system)}{{{{ $.System }}}}"
    question = f"{{{{ if $begun }}}}{_go(texts.answer_to_user)}"
    if texts.system_is_last:
        question += f"{{{{ else }}}}{_go(texts.before_user)}{{{{ end }}}}"
        question += f"{{{{ if and $last $.System }}}}{told}{_go(texts.after_system)}{{{{ end }}}}"
    else:
        question += f"{{{{ else if $.System }}}}{told}{_go(texts.after_system)}{{{{ else }}}}{_go(texts.before_user)}{{{{ end }}}}"
    answer = f'{{{{ else if and $begun (eq .Role "assistant") }}}}{_go(texts.before_answer)}{{{{ .Content }}}}'
    if texts.greeting is not None:
        without, behind = texts.greeting
        answer += (
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ if $.System }}}}{told}{_go(behind)}{{{{ else }}}}{_go(without)}{{{{ end }}}}'
            "{{ .Content }}{{ $begun = true }}"
        )
    return (
        "{{ $begun := false }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{{{{ if eq .Role "user" }}}}{question}{{{{ .Content }}}}{{{{ $begun = true }}}}{answer}{{{{ end }}}}'
        f'{{{{ if and $last (ne .Role "assistant") }}}}{_go(texts.prompt)}{{{{ end }}}}{{{{ end }}}}'
    )


def _go(text: str) -> str:
    """An action that writes the text. What does not print is escaped: Ollama's reader of Modelfiles would drop it."""
    if not text:
        return ""
    quoted = json.dumps(text, ensure_ascii=False)
    printable = "".join(sign if sign.isprintable() else rf"\U{ord(sign):08x}" for sign in quoted)
    return f"{{{{ {printable} }}}}"
