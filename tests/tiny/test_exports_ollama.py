"""Ollama's template against the tokenizer's, on twenty conversations; the Go template is run by a small reader of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from template_families import FAMILIES

from qlora_ui.base.errors import ModelError
from qlora_ui.engine.exports.ollama import sample_conversations, turn_texts, write_modelfile


class GoTemplate:
    """As much of Go's text/template as the Modelfile uses: texts, fields, range, if/else if/else, eq, ne, and, len, slice, index."""

    def __init__(self, source: str) -> None:
        self.parts = self._split(source)

    @staticmethod
    def _split(source: str) -> list[tuple[str, str]]:
        parts, at = [], 0
        while (start := source.find("{{", at)) >= 0:
            parts.append(("text", source[at:start]))
            stop, quoted = start + 2, False
            while quoted or source[stop : stop + 2] != "}}":
                if source[stop] == '"':
                    quoted = not quoted
                stop += 2 if quoted and source[stop] == "\\" else 1
            parts.append(("code", source[start + 2 : stop].strip()))
            at = stop + 2
        return [*parts, ("text", source[at:])]

    def render(self, messages: list[dict[str, str]]) -> str:
        self.messages = [{"Role": m["role"], "Content": m["content"]} for m in messages]
        self.names: dict[str, Any] = {}
        return self._block(0, len(self.parts), None)

    def _end(self, at: int) -> list[int]:
        """Places of the else branches and the end that belong to the block that opens at `at`."""
        depth, marks = 0, []
        for place in range(at, len(self.parts)):
            kind, code = self.parts[place]
            word = code.split(" ")[0] if kind == "code" else ""
            depth += word in ("if", "range")
            if word == "end":
                depth -= 1
            if depth == (0 if word == "end" else 1) and word in ("else", "end") and place > at:
                marks.append(place)
                if word == "end":
                    return marks
        raise AssertionError("no end")

    def _block(self, start: int, stop: int, dot: Any) -> str:
        out, at = "", start
        while at < stop:
            kind, code = self.parts[at]
            if kind == "text":
                out += code
            elif code.startswith("range "):
                marks = self._end(at)
                for number, message in enumerate(self.messages):
                    self.names["$i"] = number
                    out += self._block(at + 1, marks[-1], message)
                at = marks[-1]
            elif code.startswith("if "):
                marks = self._end(at)
                places = [at, *marks]
                for here, following in itertools.pairwise(places):
                    condition = self.parts[here][1].removeprefix("else").strip().removeprefix("if").strip()
                    if not condition or self._value(condition, dot):
                        out += self._block(here + 1, following, dot)
                        break
                at = marks[-1]
            elif ":=" in code:
                name, expression = code.split(":=")
                self.names[name.strip()] = self._value(expression.strip(), dot)
            else:
                out += str(self._value(code, dot))
            at += 1
        return out

    @staticmethod
    def _words(text: str) -> list[str]:
        """Split at blanks outside of quotes and brackets."""
        words, depth, quoted, escaped, word = [], 0, False, False, ""
        for letter in text:
            if quoted:
                quoted, escaped = letter != '"' or escaped, letter == "\\" and not escaped
            elif letter == " " and depth == 0:
                words.append(word)
                word = ""
                continue
            else:
                quoted = letter == '"'
                depth += (letter == "(") - (letter == ")")
            word += letter
        return [word for word in [*words, word] if word]

    def _value(self, text: str, dot: Any) -> Any:
        words = self._words(text)
        if len(words) > 1:
            name, values = words[0], [self._value(word, dot) for word in words[1:]]
            return {
                "eq": lambda: values[0] == values[1],
                "ne": lambda: values[0] != values[1],
                "and": lambda: all(values),
                "len": lambda: len(values[0]),
                "slice": lambda: values[0][values[1] :],
                "index": lambda: values[0][values[1]],
            }[name]()
        word = words[0]
        if word.startswith('"'):
            return json.loads(word)
        if word.startswith("("):
            inner, _, key = word.rpartition(")")
            found = self._value(inner[1:], dot)
            return found[key[1:]] if key else found
        if word in ("$.Messages", ".Messages"):
            return self.messages
        if word.startswith("$"):
            return self.names[word]
        return int(word) if word.isdigit() else dot[word[1:]]


def _tokenizer(template: str, special: tuple[str, ...], bos: str | None, eos: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate(dict.fromkeys([*special, *([bos] if bos else []), eos, "x"]))}
    backend = Tokenizer(models.WordLevel(words, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="x")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_go_template_writes_what_the_tokenizer_writes(family: Any) -> None:
    tokenizer = _tokenizer(family.template, family.special, family.bos, family.eos)
    try:
        texts = turn_texts(tokenizer)
    except ModelError as error:
        assert error.code == "export-template" and error.problems[0].fix
        pytest.skip(f"refused: {error}")
    template = GoTemplate(texts.go_template())
    conversations = sample_conversations(texts.has_system)
    assert len(conversations) == 20
    for messages in conversations:
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert template.render(messages) == texts.render(messages) == expected


def test_most_families_have_an_ollama_template() -> None:
    refused = []
    for family in FAMILIES:
        try:
            turn_texts(_tokenizer(family.template, family.special, family.bos, family.eos))
        except ModelError:
            refused.append(family.name)
    assert len(FAMILIES) - len(refused) >= 6, refused


def test_a_template_that_changes_the_text_is_refused() -> None:
    shouting = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}<assistant>"
    with pytest.raises(ModelError):
        turn_texts(_tokenizer(shouting, (), None, "</s>"))
    counting = "{% for m in messages %}<{{ loop.index }}>{{ m.content }}{% endfor %}<a>"
    with pytest.raises(ModelError):
        turn_texts(_tokenizer(counting, (), None, "</s>"))
    with pytest.raises(ModelError, match="no chat template"):
        turn_texts(_tokenizer("", (), None, "</s>"))


def test_the_modelfile_names_the_file_and_the_stop_words(tmp_path: Path) -> None:
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"
    write_modelfile(tmp_path, "model-q8_0.gguf", _tokenizer(chatml, ("<|im_start|>",), None, "<|im_end|>"), ["<|im_end|>"], "mit")
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./model-q8_0.gguf\n" in text and 'PARAMETER stop "<|im_end|>"\n' in text and 'LICENSE """mit"""' in text
