"""Ollama's Modelfile, read and filled in by Go's own text/template, against the tokenizer, on twenty conversations a family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from template_families import FAMILIES

from qlora_ui.base.errors import ModelError
from qlora_ui.catalog.templates import TEMPLATES
from qlora_ui.data.rows import Message
from qlora_ui.engine.exports.ollama import write_modelfile
from qlora_ui.engine.exports.turns import sample_conversations, turn_texts

Go = Callable[[Path, Sequence[Sequence[Message]]], dict[str, Any]]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Go:
    """What Ollama reads in a Modelfile and makes of conversations: {"commands": {name: [value]}, "texts": [...]}."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed (apt-get install golang-go): nothing here fills in its templates")
    folder = tmp_path_factory.mktemp("go")
    program = folder / f"render{'.exe' if os.name == 'nt' else ''}"
    environment = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    source = Path(__file__).with_name("modelfile_render.go")
    subprocess.run(["go", "build", "-o", str(program), str(source)], env=environment, check=True)

    def run(folder: Path, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
        asked = json.dumps([[message.as_dict() for message in messages] for messages in conversations])
        done = subprocess.run([str(program), "Modelfile"], cwd=folder, input=asked.encode(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def _tokenizer(template: str, special: tuple[str, ...] = (), bos: str | None = None, eos: str = "</s>") -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate(dict.fromkeys([*special, *([bos] if bos else []), eos, "x"]))}
    backend = Tokenizer(models.WordLevel(words, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="x")
    tokenizer.chat_template = template
    return tokenizer


def _expected(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The tokenizer's text; where its template refuses system prompts, with the prompt in the first question, as in training."""
    turns = [message.as_dict() for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        system, question, *rest = turns
        turns = [{**question, "content": f"{system['content']}\n\n{question['content']}"}, *rest]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


KINDS = {
    **{family.name: (family.template, family.special, family.bos, family.eos) for family in FAMILIES},
    **{f"own-{template.name}": (template.jinja, (), "<s>", template.end) for template in TEMPLATES},
}


@pytest.mark.parametrize("kind", KINDS)
def test_go_writes_what_the_tokenizer_writes(kind: str, go: Go, tmp_path: Path) -> None:
    tokenizer = _tokenizer(*KINDS[kind])
    texts = turn_texts(tokenizer)
    write_modelfile(tmp_path, "model.gguf", tokenizer, ["</s>"], "mit")
    conversations = sample_conversations(can_greet=texts.greeting is not None)
    assert len(conversations) == 20
    assert go(tmp_path, conversations)["texts"] == [_expected(tokenizer, messages) for messages in conversations]


@pytest.mark.parametrize("kind", KINDS)
def test_what_ollama_cuts_down_stays_a_conversation(kind: str, go: Go, tmp_path: Path) -> None:
    """A long talk loses its first turns and keeps its system prompt; a prompt may also be set in the middle."""
    tokenizer = _tokenizer(*KINDS[kind])
    write_modelfile(tmp_path, "model.gguf", tokenizer, [], "")
    talk = [Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2")]
    system, late = Message("system", "S"), [*talk[:2], Message("system", "S"), talk[2]]
    cut, told, set_late = go(tmp_path, [[system, *talk[1:]], [system, *talk], late])["texts"]
    assert told == set_late == _expected(tokenizer, [system, *talk])
    assert cut == _expected(tokenizer, [system, *talk[1:]] if turn_texts(tokenizer).greeting else [system, talk[2]])


def test_nothing_is_lost_between_file_and_reader(go: Go, tmp_path: Path) -> None:
    odd = '<"a\\b">\u200b\x0b\u2028\ufeff{{ .Content }}"""'
    quoted = odd.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    template = f'{{% for m in messages %}}{{{{ "{quoted}" }}}}{{{{ m.role }}}} {{{{ m.content }}}}\r\n{{% endfor %}}\tanswer:'
    tokenizer = _tokenizer(template)
    stops = ["<|im_end|>", 'a"b', "back\\slash", "<｜end▁of▁sentence｜>"]
    system = "You sell “tea”.\n\nBe brief."
    write_modelfile(tmp_path, "m-q8_0.gguf", tokenizer, stops, "apache-2.0", system=system)
    found = go(tmp_path, [[Message("user", "Hi")]])
    assert found["texts"] == [_expected(tokenizer, [Message("user", "Hi")])]
    assert odd in found["texts"][0]
    template = found["commands"].pop("TEMPLATE")
    assert found["commands"] == {
        "FROM": ["./m-q8_0.gguf"],
        "stop": stops,
        "SYSTEM": [system],
        "LICENSE": ["apache-2.0"],
    }


def test_what_the_template_does_beyond_is_said(tmp_path: Path) -> None:
    assert write_modelfile(tmp_path, "m.gguf", _tokenizer(CHATML), [], "") == ()
    (remark,) = write_modelfile(tmp_path, "m.gguf", _tokenizer(CHATML), [], "", system='Say """ often.')
    assert "three quotation marks" in remark and "SYSTEM" not in (tmp_path / "Modelfile").read_text(encoding="utf-8")
    trims = CHATML.replace("m.content", "m.content | trim")
    drops = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    dates = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    for template, word in ((trims, "Blanks"), (drops, "Thoughts"), (dates, "date"), (tools, "tools")):
        remarks = write_modelfile(tmp_path, "m.gguf", _tokenizer(template), [], "")
        assert any(word in remark for remark in remarks)
        text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
        assert all(f"# {remark}\n" in text for remark in remarks)
    assert f"{datetime.now():%d %b %Y}" in turn_texts(_tokenizer(dates)).before_user


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("", "no chat template"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}<assistant>", "changes or reorders"),
        ("{% for m in messages %}<{{ loop.index }}>{{ m.content }}{% endfor %}<a>", "more than join"),
        ("{{ tools | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "cannot write a question"),
    ],
)
def test_a_template_that_is_more_than_texts_is_refused(template: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        write_modelfile(tmp_path, "m.gguf", _tokenizer(template), [], "")
    assert caught.value.problems[0].fix and not list(tmp_path.iterdir())
