"""Where the prompts of an export begin: llama.cpp and Ollama put a model's first token in front of each, where the file tells them to."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader, Keys

from qlora_ui.base.errors import ModelError
from qlora_ui.engine.rendering import Renderer
from qlora_ui.engine.tokenizer import load_tokenizer


def adds_a_begin(folder: Path) -> bool:
    """Whether a model's tokenizer puts a first token in front of texts of which its chat template, and so training, has none.

    As ChatML on a base of Llama or Mistral: chats are rendered by the template alone, which begins with `<|im_start|>`.
    """
    tokenizer = load_tokenizer(folder)
    begin = tokenizer.bos_token
    if not tokenizer.chat_template or not begin or tokenizer("x")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    try:
        return not Renderer(tokenizer).render([{"role": "user", "content": "x"}], prompt=True).startswith(begin)
    except ModelError:
        return False


def leave_out_begin(file: Path) -> None:
    """Say in a GGUF file that nothing is put in front of a prompt.

    Afterwards and in place: the converter knows a vocabulary by what its tokenizer makes of a text, first token included.
    """
    field = GGUFReader(file, "r+").get_field(Keys.Tokenizer.ADD_BOS)
    if field is not None:
        field.parts[field.data[0]][0] = False
