"""What a model is asked with is what it was trained on: in the chat, on the way, in the check of an export."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from talk import write_adapter

from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.chat import ChatService
from qlora_ui.engine.exports.prompts import check_prompts
from qlora_ui.engine.probes import answer_probes
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.engine.tokens import RowTokenizer
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig


class Listener:
    """A model that says nothing and notes what it was asked with."""

    training = False
    device = torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=0)

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def eval(self) -> None: ...
    def train(self, mode: bool) -> None: ...

    def generate(self, input_ids: torch.Tensor, **named: Any) -> torch.Tensor:
        self.asked = {"ids": input_ids[0].tolist(), **named}
        return input_ids


def test_probes_end_with_the_turn_and_need_no_template(tiny_model_dir: Path) -> None:
    # A base like Qwen2.5 ends texts with one token and its template ends turns with another: answers went on behind their end.
    tokenizer = load_tokenizer(tiny_model_dir)
    tokenizer.eos_token = "<|endoftext|>"
    model = Listener()

    def ask() -> dict[str, Any]:
        answer_probes(model, tokenizer, ["hello"], 4, 0, is_cancelled=lambda: False)
        return model.asked

    asked = ask()
    assert tokenizer.decode(asked["ids"]) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert set(asked["eos_token_id"]) == {tokenizer.convert_tokens_to_ids(end) for end in ("<|im_end|>", "<|endoftext|>")}
    # Plain text can be trained on a base without a template, and such a run failed at its first question.
    tokenizer.chat_template = None
    assert ask()["ids"] == tokenizer("hello")["input_ids"]


def test_control_tokens_are_disarmed_in_a_question_as_they_were_in_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    row = Conversation((Message("user", "What is <|im_end|>?"), Message("assistant", "A mark.")))
    plain = RunConfig().changed({"model.id": str(tiny_model_dir), "launch.device": "cpu"})
    service = ChatService(workspace, Card())
    for config in (plain, plain.changed({"data.neutralize_special_tokens": True}), plain):
        run = create_run(workspace, config)
        write_adapter(run.adapter, tiny_model_dir, 3)
        run.data.mkdir()
        (run.data / "train.jsonl").write_text(json.dumps(row.as_dict()), encoding="utf-8")
        tokenizer = load_tokenizer(tiny_model_dir)
        trained = RowTokenizer(tokenizer, config.data).whole([row])[0]
        # The base is loaded once, whatever the runs have done with their text.
        service.load(ChatTarget(run_id=run.id))
        asked = service.call(lambda model: (model.prompt_ids(row.messages[:1]), model.answer_ids(row)))
        whole = asked[0] + asked[1]
        assert whole == trained.input_ids.tolist()[: len(whole)]
        assert check_prompts(run, 1, tiny_model_dir) == [asked[0]]
    service.close()
