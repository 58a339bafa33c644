"""The quality receipt of a run: what 4-bit cost, what the adapter gained, and in which form to keep it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import GrowingLines, room_for, sha256_of, write_json
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import MIB
from qlora_ui.catalog.metrics import MOST_ROWS, TEXT_METRICS, Estimate, applicable, bootstrap, label_scores, mean_share, without_thinking
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.adapter import noted_weights
from qlora_ui.engine.chat_answer import BUCKET_TOKENS, Answering, Delta
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel, out_of_memory_in_words
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.chat_targets import ChatTarget, adapter_folder, target_config
from qlora_ui.engine.evaluate_models import (
    ADAPTER,
    BASE_4BIT,
    BASE_FULL,
    MERGED_DEQUANTIZED,
    MERGED_ORIGINAL,
    VARIANTS,
    Variant,
    WholeModels,
)
from qlora_ui.engine.evaluate_scores import EvalRow, Scores, score_rows
from qlora_ui.engine.evaluate_verdict import verdict
from qlora_ui.engine.load import num_parameters
from qlora_ui.hardware.system import versions
from qlora_ui.models.weights_mark import replaced_words, weights_mark
from qlora_ui.runs.card import Card, Hold
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling

SHORTEST_ANSWER, LONGEST_ANSWER = 96, 512
"""Tokens that an answer may have in any case, and at most."""
NUM_ANSWERS, NUM_LABELS = 16, 64
"""Questions that are answered, and how many where the answers are as short as labels: what they show is surer with more of them."""
LABEL_TOKENS, LABEL_ANSWER = 16, SHORTEST_ANSWER * NUM_ANSWERS // NUM_LABELS
"""Tokens of what counts as a label, and what an answer may have there in any case: all of them take no longer than others do."""
LAYERS_SHARE = 0.9
"""Of the time for a variant that is read layer by layer; the rest is its output layer."""
RESULT_BYTES = 2 * MIB
"""Kept free on the disk for the result, which is much smaller: an evaluation takes hours, and the disk may fill up meanwhile."""
FREE_S = 30.0
"""Longest wait for a chat to end its token and let go."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """How much is looked at."""

    max_rows: int = MOST_ROWS
    """Held-back rows whose loss is computed, taken evenly from all: they stand in the order of the data, which may be sorted."""
    num_answers: int | None = None
    """Held-back rows that base and adapter answer; 0 leaves the task metrics out, None is NUM_ANSWERS, or NUM_LABELS of labels."""
    max_tokens: int | None = None
    """Longest answer; None gives each what its reference needs and a quarter more, between SHORTEST_ANSWER and LONGEST_ANSWER."""
    variants: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)

    def num_asked(self, *, are_labels: bool) -> int:
        """Questions that are put at most."""
        return self.num_answers if self.num_answers is not None else NUM_LABELS if are_labels else NUM_ANSWERS

    def longest_answer(self, num_needed: int, *, is_among_labels: bool = False) -> int:
        """Tokens that the answer to a question may have whose reference has `num_needed`."""
        shortest = LABEL_ANSWER if is_among_labels else SHORTEST_ANSWER
        return self.max_tokens or min(max(num_needed * 5 // 4, shortest), LONGEST_ANSWER)


@dataclass(frozen=True, slots=True)
class Answered:
    """A held-back question with its reference and both answers."""

    question: str
    reference: str
    base: str
    adapter: str
    cut: tuple[str, ...] = ()
    """Sides whose answer ended because it had reached its longest."""
    is_measured: bool = True
    """False where the reference itself is longer than an answer may be: half a JSON is no JSON, and says nothing of the model."""


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

    room = room_for(run.evaluation_path, RESULT_BYTES)
    with room, _hold(card, run, config), card.turns.turn(), out_of_memory_in_words("The evaluation does not fit on the card."):
        work = _Evaluation(options, rows, card.turns.pass_on, on_progress, is_over)
        began = time.monotonic()
        model = ChatModel.load(config, workspace, on_progress, is_over)
        try:
            model.add_adapter("adapter", adapter)
            warning = replaced_words(noted_weights(adapter), weights_mark(model.folder), model.folder)
            num_params = num_parameters(model.base)[1]
            work.score_quantized(model)
            answers = work.answer(model, conversations)
            device, folder = model.device, model.folder
        finally:
            model.free()
        work.score_whole(WholeModels(folder, config, device, num_params), adapter)
    result = work.result(answers, is_replaced=bool(warning)) | {
        "num_held_back": num_held_back,
        "run_id": run.id,
        "checkpoint": checkpoint,
        "adapter_sha256": adapter_sha256,
        "warning": warning,
        "model": config.model.id,
        "time": time.time(),
        "duration_s": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": str(WholeModels(folder, config, device, num_params).dtype).removeprefix("torch."),
        "versions": versions(),
    }
    stop_if(is_over, "The evaluation")
    write_json(run.evaluation_path, result)
    return result


def _hold(card: Card, run: RunDir, config: RunConfig) -> Hold:
    """The card, which an idle chat gives up: it loads again by itself with the next question."""
    is_alone = all(holder.who == "chat" for holder in card.holders())
    wait_s = FREE_S if is_alone and card.free("chat") else 0.0
    return card.hold("evaluation", run.name(config), run_id=run.id, wait_s=wait_s)


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

    def score_quantized(self, model: ChatModel) -> None:
        """Base and adapter on the one 4-bit model."""
        dtype = model.base.get_input_embeddings().weight.dtype
        for variant, key in ((BASE_4BIT, "base"), (ADAPTER, "adapter")):
            if variant.name in self.options.variants:
                model.switch.choose([key], dtype, model.device)
                self._score(variant.name, variant.title, model.base, model.device)

    def score_whole(self, models: WholeModels, adapter: Path) -> None:
        """The three models in whole numbers, one after another, as far as memory allows."""
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

    def _score_by_layer(self, models: WholeModels, variant: Variant, adapter: Path) -> None:
        """A variant that does not fit in one piece."""

        def layer(done: int, total: int) -> None:
            self._between(f"{variant.title}: layer {done + 1} of {total}", self._share(LAYERS_SHARE * done / total))

        self.streamed.add(variant.name)
        with models.by_layer(variant, adapter, self.rows, layer) as model:
            self._score(variant.name, variant.title, model, models.device, begun=LAYERS_SHARE)

    def answer(self, model: ChatModel, conversations: Sequence[Conversation]) -> list[Answered]:
        """Greedy answers of base and adapter to held-back questions, both in one batch."""
        questions = [item for item in map(_question, conversations) if item]
        are_labels = self.options.num_answers != 0 and are_as_labels([len(model.answer_ids(one)) for one in questions])
        asked = [questions[place] for place in _evenly(len(questions), self.options.num_asked(are_labels=are_labels))]
        cache = ChatCache(model.num_layers, model.context_tokens, BUCKET_TOKENS[model.device.type])
        forward = ForwardPass(model.base, cache, model.switch, model.device, capture=model.device.type == "cuda", tokens=model.tokens)
        answering = Answering(model, cache, forward, self._pass_on)
        keys = {"base": "base", "adapter": "adapter"}
        sides = [keys] if model.switch.can_share(list(keys)) else [{"base": "base"}, {"adapter": "adapter"}]
        answers = []
        for index, one in enumerate(asked):
            self._between(f"Answering question {index + 1} of {len(asked)}", self._share(index / len(asked)))
            before = one.messages[:-1]
            ids, wanted = model.prompt_ids(before, one.tools), model.answer_ids(one)
            if len(ids) + 1 >= model.context_tokens:
                continue
            said, ends = dict.fromkeys(keys, ""), dict.fromkeys(keys, "")

            def take(delta: Delta, said: dict[str, str] = said, ends: dict[str, str] = ends) -> None:
                said[delta.side] += delta.text
                ends[delta.side] = delta.stopped_by

            longest = self.options.longest_answer(len(wanted), is_among_labels=are_labels)
            with torch.inference_mode():
                for group in sides:
                    greedy = Sampling(temperature=0, max_tokens=longest)
                    answering.answer(dict.fromkeys(group, ids), group, greedy, take, self._is_cancelled, known=list(keys))
            cut = tuple(side for side, end in ends.items() if end in ("length", "context"))
            is_measured = len(wanted) <= min(longest, model.context_tokens - len(ids))
            # As answers are read: without the tokens that only steer.
            reference = model.tokenizer.decode(wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            answers.append(Answered(_last_words(before), reference, said["base"], said["adapter"], cut, is_measured))
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
            "tasks": _tasks([answer for answer in answers if answer.is_measured]),
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
    places = _evenly(table.num_rows, max_rows)
    tokens = table.take(places)
    rows = [EvalRow(ids, labels) for ids, labels in zip(tokens["input_ids"].to_pylist(), tokens["labels"].to_pylist(), strict=True)]
    lines = list(GrowingLines(run.data / "eval.jsonl").read())
    conversations = [Conversation.from_dict(json.loads(lines[place])) for place in places if place < len(lines)]
    return [row for row in rows if row.places], conversations, table.num_rows


def are_as_labels(lengths: Sequence[int]) -> bool:
    """Whether nearly all of these references, by their tokens, are as short as labels."""
    return bool(lengths) and sorted(lengths)[len(lengths) * 9 // 10] <= LABEL_TOKENS


def _evenly(count: int, most: int) -> list[int]:
    """At most that many places among `count`, in order and equally far apart."""
    return [place * count // most for place in range(most)] if count > most else list(range(count))


def _question(conversation: Conversation) -> Conversation | None:
    """The turns up to the last answer that is learned, with it; None where there is none, or nothing before it."""
    messages = conversation.messages
    places = [at for at, turn in enumerate(messages) if turn.role == "assistant" and turn.is_learned and (turn.content or turn.tool_calls)]
    return replace(conversation, messages=messages[: places[-1] + 1]) if places and places[-1] else None


def _last_words(messages: Sequence[Message]) -> str:
    """What an answer is given to: the last question, with what tools told since."""
    first = max((at for at, turn in enumerate(messages) if turn.role == "user"), default=len(messages) - 1)
    return "\n".join(turn.content for turn in messages[first:] if turn.content)


def _tasks(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    references = [without_thinking(answer.reference) for answer in answers]
    tasks = []
    for name in applicable(references):
        task: dict[str, Any] = {"metric": name}
        for side in ("base", "adapter"):
            said = [without_thinking(getattr(answer, side)) for answer in answers]
            if name in TEXT_METRICS:
                pairs = zip(said, references, strict=True)
                task[side] = asdict(mean_share([TEXT_METRICS[name](text, reference) for text, reference in pairs]))
            else:
                scores = label_scores(said, references)
                task[side] = {"value": scores.pop("f1"), **scores}
        tasks.append(task)
    return tasks
