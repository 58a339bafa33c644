"""The quality receipt of a run: what 4-bit cost, what the adapter gained, and in which form to keep it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import GrowingLines, room_for, sha256_of, write_json
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import MIB
from qlora_ui.catalog.metrics import Estimate, bootstrap
from qlora_ui.data.rows import Conversation
from qlora_ui.engine.adapter import noted_weights
from qlora_ui.engine.chat_model import ChatModel, out_of_memory_in_words
from qlora_ui.engine.evaluate_answers import SIDES, Answered, answer_questions, task_scores
from qlora_ui.engine.evaluate_models import (
    ADAPTER,
    BASE_4BIT,
    BASE_FULL,
    MERGED_DEQUANTIZED,
    MERGED_ORIGINAL,
    VARIANTS,
    UnquantizedModels,
    Variant,
)
from qlora_ui.engine.evaluate_options import EvaluateOptions, evenly
from qlora_ui.engine.evaluate_scores import EvalRow, Scores, score_rows
from qlora_ui.engine.evaluate_verdict import verdict
from qlora_ui.engine.load import num_parameters
from qlora_ui.hardware.system import versions
from qlora_ui.models.weights_mark import replaced_words, weights_mark
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder, target_config
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

LAYERS_SHARE = 0.9
"""Of the time for a variant that is read layer by layer; the rest is its output layer."""
RESULT_BYTES = 2 * MIB
"""Kept free on the disk for the result, which is much smaller: an evaluation takes hours, and the disk may fill up meanwhile."""


def evaluate_run(
    run_id: str,
    workspace: Workspace,
    card: Card,
    options: EvaluateOptions | None = None,
    *,
    checkpoint: str | None = None,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> dict[str, Any]:
    """Evaluate a run (or a checkpoint of it) on its held-back rows; writes `evaluation.json` into the run and returns it.

    Where no checkpoint is named and the run has no finished adapter, its newest checkpoint is evaluated.

    Keys: `scores` (a dict for each variant: loss, perplexity, accuracy, `by_layer` where it was too large for the memory, or
    `skipped` with the reason), `gain` (base minus adapter, nats a token with interval), `agreement`, `logit_difference`, `tasks`,
    `answers`, `verdict`, `num_rows` of `num_held_back`, `checkpoint` (None for the finished adapter), `adapter_sha256`, `warning`
    (where the base is not the one that the adapter was trained on), `time` (when it was done).
    Raises RunError where no rows were held back or the card is busy, ModelError, and Cancelled, also where the run was deleted.
    """
    options = options or EvaluateOptions()
    run = find_run(workspace, run_id)
    checkpoint = checkpoint or run.stand_in
    target = ChatTarget(run_id=run.id, checkpoint=checkpoint)
    config = target_config(target, workspace)
    adapter = adapter_folder(target, workspace)
    assert adapter is not None
    adapter_sha256 = sha256_of(adapter / ADAPTER_WEIGHTS)
    rows, conversations, num_held_back = _held_back(run, options.max_rows)

    def is_over() -> bool:
        # A run may be deleted meanwhile; its folder must not come back with nothing but this in it.
        return is_cancelled() or not run.path.is_dir()

    with (
        room_for(run.evaluation_path, RESULT_BYTES),
        card.hold_after_chat("evaluation", run.name(config), run_id=run.id, is_cancelled=is_over),
        card.turns.turn(),
        out_of_memory_in_words("The evaluation does not fit on the card."),
    ):
        work = _Evaluation(options, rows, card.turns.pass_on, on_progress, is_over)
        began = time.monotonic()
        measured = work.measure(config, workspace, adapter, conversations)
    result = measured | {
        "num_held_back": num_held_back,
        "run_id": run.id,
        "checkpoint": checkpoint,
        "adapter_sha256": adapter_sha256,
        "model": config.model.id,
        "time": time.time(),
        "duration_s": round(time.monotonic() - began, 1),
        "versions": versions(),
    }
    stop_if(is_over, "The evaluation")
    write_json(run.evaluation_path, result)
    return result


class _Evaluation:
    """The scores as they come in."""

    def __init__(
        self,
        options: EvaluateOptions,
        rows: Sequence[EvalRow],
        pass_on: Callable[[], None],
        on_progress: OnProgress,
        is_cancelled: IsCancelled,
    ) -> None:
        self.options = options
        self.rows = rows
        self.scores: dict[str, Scores] = {}
        self.skipped: dict[str, str] = {}
        self.streamed: set[str] = set()
        """Variants that were read layer by layer."""
        self._pass_on = pass_on
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._num_steps = max(len(options.variants) + (options.num_answers != 0), 1)
        self._answered = False

    def measure(self, config: RunConfig, workspace: Workspace, adapter: Path, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """All scores and answers, with what they were computed on; one model is in memory at a time."""
        model = ChatModel.load(config, workspace, self._on_progress, self._is_cancelled)
        try:
            model.add_adapter("adapter", adapter)
            warning = replaced_words(noted_weights(adapter), weights_mark(model.folder), model.folder)
            unquantized = UnquantizedModels(model.folder, config, model.device, num_parameters(model.base)[1])
            self.score_quantized(model)
            answers = self.answer(model, conversations)
        finally:
            model.free()
        self.score_unquantized(unquantized, adapter)
        return self.result(answers, is_replaced=bool(warning)) | {
            "warning": warning,
            "device": torch.cuda.get_device_name(unquantized.device) if unquantized.device.type == "cuda" else "CPU",
            "dtype": str(unquantized.dtype).removeprefix("torch."),
        }

    def score_quantized(self, model: ChatModel) -> None:
        """Base and adapter on the one 4-bit model."""
        dtype = model.base.get_input_embeddings().weight.dtype
        for variant, key in zip((BASE_4BIT, ADAPTER), SIDES, strict=True):
            if variant.name in self.options.variants:
                model.switch.choose([key], dtype, model.device)
                self._score(variant.name, variant.title, model.base, model.device)

    def score_unquantized(self, models: UnquantizedModels, adapter: Path) -> None:
        """The three models that are not in 4 bits, one after another, as far as memory allows."""
        contexts: dict[Variant, Callable[[], AbstractContextManager[Any]]] = {
            BASE_FULL: models.plain,
            MERGED_ORIGINAL: lambda: models.merged(adapter, dequantized=False),
            MERGED_DEQUANTIZED: lambda: models.merged(adapter, dequantized=True),
        }
        for variant, context in contexts.items():
            if variant.name not in self.options.variants:
                continue
            stop_if(self._is_cancelled, "The evaluation")
            if models.fits(variant):
                self._on_progress(f"Loading: {variant.title}", self._share(0))
                with context() as model:
                    self._score(variant.name, variant.title, model, models.device)
            elif reason := models.reason_to_skip(self.rows):
                self.skipped[variant.name] = reason
            else:
                self._score_by_layer(models, variant, adapter)

    def _score_by_layer(self, models: UnquantizedModels, variant: Variant, adapter: Path) -> None:
        """A variant that does not fit in one piece."""

        def layer(done: int, total: int) -> None:
            self._between(f"{variant.title}: layer {done + 1} of {total}", self._share(LAYERS_SHARE * done / total))

        self.streamed.add(variant.name)
        with models.by_layer(variant, adapter, self.rows, layer) as model:
            self._score(variant.name, variant.title, model, models.device, begun=LAYERS_SHARE)

    def answer(self, model: ChatModel, conversations: Sequence[Conversation]) -> list[Answered]:
        """Answers of base and adapter to held-back questions."""

        def question(done: int, total: int) -> None:
            self._between(f"Answering question {done + 1} of {total}", self._share(done / total))

        answers = answer_questions(
            model, conversations, self.options, pass_on=self._pass_on, between=question, is_cancelled=self._is_cancelled
        )
        self._answered = self.options.num_answers != 0
        return answers

    def result(self, answers: Sequence[Answered], *, is_replaced: bool) -> dict[str, Any]:
        """Everything measured, as plain data; `is_replaced` where the adapter was trained on another base."""
        known = {variant.name: variant for variant in VARIANTS}
        scores = []
        for name in self.options.variants:
            row: dict[str, Any] = {"variant": name, "title": known[name].title, "about": known[name].about}
            if name in self.scores:
                score = self.scores[name]
                row |= {"loss": score.loss, "perplexity": score.perplexity, "accuracy": score.accuracy}
                row |= {"by_layer": True} if name in self.streamed else {}
            else:
                row["skipped"] = self.skipped.get(name, "not asked for")
            scores.append(row)
        adapter = self.scores.get(ADAPTER.name)
        gain, cost = self._difference(BASE_4BIT.name, ADAPTER.name), self._difference(BASE_4BIT.name, BASE_FULL.name)
        merges = (MERGED_ORIGINAL.name, MERGED_DEQUANTIZED.name)
        losses = {name: score.loss for name, score in self.scores.items()}
        return {
            "num_rows": len(self.rows),
            "num_tokens": sum(len(row.places) for row in self.rows),
            "scores": scores,
            "gain": asdict(gain) if gain else None,
            "four_bit_cost": asdict(cost) if cost else None,
            "agreement": {a: {b: self.scores[a].agreement(self.scores[b]) for b in self.scores} for a in self.scores},
            "logit_difference": {name: self.scores[name].logit_difference(adapter) for name in merges if name in self.scores and adapter},
            "tasks": task_scores(answers),
            "answers": [asdict(answer) for answer in answers],
            "verdict": verdict(losses, gain, cost, len(self.rows), is_replaced=is_replaced),
        }

    def _difference(self, worse: str, better: str) -> Estimate | None:
        """Nats a token by which `better` is lower, over the same rows."""
        if worse not in self.scores or better not in self.scores:
            return None
        pairs = zip(self.scores[worse].row_losses(), self.scores[better].row_losses(), strict=True)
        return bootstrap([high - low for high, low in pairs], self.scores[worse].num_tokens)

    def _score(self, name: str, title: str, model: Any, device: torch.device, *, begun: float = 0.0) -> None:
        """Score the rows; `begun` is the share of this variant's work that is done already."""
        total = len(self.rows)

        def row(done: int) -> None:
            self._between(f"{title}: row {done} of {total}", self._share(begun + (1 - begun) * done / total))

        scores = score_rows(model, self.rows, device, row)
        if math.isfinite(scores.loss):
            self.scores[name] = scores
        else:
            self.skipped[name] = "gives numbers that are none (NaN): choose fp32 or bf16 arithmetic"

    def _between(self, what: str, share: float | None) -> None:
        stop_if(self._is_cancelled, "The evaluation")
        self._on_progress(what, share)
        self._pass_on()

    def _share(self, part: float) -> float:
        return min((len(self.scores) + len(self.skipped) + self._answered + part) / self._num_steps, 1.0)


def _held_back(run: RunDir, max_rows: int) -> tuple[list[EvalRow], list[Conversation], int]:
    """The rows that are looked at, as tokens and as conversations, and how many there are in all."""
    path = run.data / "eval.tokens.parquet"
    if not path.is_file():
        raise RunError(
            "No rows were held back from this run.",
            why="Rows that were trained on would say nothing about new ones.",
            fix="Train with a share held back for checking (eval.share).",
            code="no-eval-rows",
        )
    table = pq.read_table(path)
    places = evenly(table.num_rows, max_rows)
    tokens = table.take(places)
    rows = [EvalRow(ids, labels) for ids, labels in zip(tokens["input_ids"].to_pylist(), tokens["labels"].to_pylist(), strict=True)]
    lines = list(GrowingLines(run.data / "eval.jsonl").read())
    conversations = [Conversation.from_dict(json.loads(lines[place])) for place in places if place < len(lines)]
    return [row for row in rows if row.places], conversations, table.num_rows
