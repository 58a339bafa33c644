"""Answers of the model in training to the user's probe questions, so that learning can be read and not only plotted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from qlora_ui.data.rows import Message
from qlora_ui.engine.phases import Phases
from qlora_ui.engine.prompt import prompt_ids, renderer_of
from qlora_ui.engine.randomness import untouched_randomness
from qlora_ui.engine.tokenizer import stop_token_ids
from qlora_ui.engine.trainer import QloraTrainer
from qlora_ui.runs.events import Event, ProbeAnswered
from qlora_ui.settings.run_config import RunConfig


class _Until(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self._is_cancelled = is_cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._is_cancelled(), dtype=torch.bool, device=input_ids.device)


class Probes:
    """When the questions are asked: every so many steps, by the process that writes the journal, and not while the run is to end."""

    def __init__(  # noqa: PLR0917
        self, trainer: QloraTrainer, tokenizer: Any, config: RunConfig, every: int, phases: Phases, write: Callable[[Event], object]
    ) -> None:
        """`every` is in steps, 0 for never."""
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._settings = config.eval
        # A base that is split over cards cannot answer one process alone.
        self._every = every if config.launch.sharding == "none" and trainer.is_world_process_zero() else 0
        self._phases = phases
        self._write = write
        self._asked_at = -1

    def ask(self, step: int) -> None:
        """Have the questions answered and the answers written down, where it is time."""
        if not self._every or step % self._every or step == self._asked_at or self._phases.is_cancelled():
            return
        self._asked_at = step
        self._phases.enter("probe")
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        settings, is_cancelled = self._settings, self._phases.is_cancelled
        for answer in answer_probes(model, self._tokenizer, settings.probes, settings.probe_tokens, step, is_cancelled=is_cancelled):
            self._write(answer)


def answer_probes(
    model: Any, tokenizer: Any, questions: Sequence[str], max_tokens: int, step: int, *, is_cancelled: Callable[[], bool]
) -> list[ProbeAnswered]:
    """The most likely answer to each question (no sampling, so that steps can be compared); stops early when cancelled.

    Leaves the training's random numbers, mode and cache settings as they were.
    """
    was_training = model.training
    answers = []
    model.eval()
    try:
        with untouched_randomness(), torch.inference_mode():
            for question in questions:
                if is_cancelled():
                    break
                started = time.monotonic()
                text = _answer(model, tokenizer, question, max_tokens, is_cancelled)
                answers.append(ProbeAnswered(step=step, prompt=question, answer=text, duration_s=time.monotonic() - started))
    finally:
        model.train(was_training)
    return answers


def _answer(model: Any, tokenizer: Any, question: str, max_tokens: int, is_cancelled: Callable[[], bool]) -> str:
    ids = prompt_ids(tokenizer, renderer_of(tokenizer), [Message("user", question)])
    ids_1T = torch.tensor([ids], device=model.device)
    output = model.generate(
        input_ids=ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=stop_token_ids(tokenizer, model.generation_config),
        pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([_Until(is_cancelled)]),
    )
    # Some tokenizers would move the spaces around signs; the chat shows them as they are.
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
