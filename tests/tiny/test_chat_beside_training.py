"""Chatting while a run trains in the same process: the answers fall between two steps and change nothing of the run."""

from __future__ import annotations

from pathlib import Path

from jobs import curve, tiny_config, train, write_rows

from qlora_ui.base.files import sha256_of
from qlora_ui.data.rows import Message
from qlora_ui.engine.chat import ChatService
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sampling import Sampling

WEIGHTS = "adapter_model.safetensors"


def test_the_curve_is_that_of_the_undisturbed_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "workspace")
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), train__max_steps=60, eval__every=20, output__save_every=20)
    alone = train(workspace, config)
    assert alone.status is Status.DONE, alone.ended

    card = Card()
    chat = ChatService(workspace, card)
    launcher = Launcher(workspace, card, fits_beside=lambda config, holder: holder.who == "chat")
    try:
        chat.load(ChatTarget(run_id=alone.id))
        run = launcher.start(config)
        at: list[int] = []
        while not launcher.wait_until_idle(0.0):
            # Sampled answers draw random numbers; two at once on both sides use the cache as a page does.
            question = [Message("user", f"hello world {len(at)}")]
            answer = list(chat.stream(question, Sampling(temperature=1.0, max_tokens=8), ("base", "adapter")))
            assert answer[-1].is_done
            view = read_run(run)
            if 0 < view.step < 60 and {holder.who for holder in card.holders()} == {"chat", "training"}:
                at.append(view.step)
    finally:
        launcher.shutdown()
        chat.close()
    beside = read_run(run)
    assert beside.status is Status.DONE, beside.ended
    # Answers were given in the middle of the run, after different steps.
    assert len(set(at)) >= 3, at
    assert curve(beside) == curve(alone)
    assert [event.loss for event in beside.evals] == [event.loss for event in alone.evals]
    assert sha256_of(beside.run.adapter / WEIGHTS) == sha256_of(alone.run.adapter / WEIGHTS)
