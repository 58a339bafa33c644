"""Held-back questions answered by base and adapter, and what the task metrics say of the answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from qlora_ui.base.progress import IsCancelled
from qlora_ui.catalog.metrics import TEXT_METRICS, applicable, label_scores, mean_share, without_thinking
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.chat_answer import BUCKET_TOKENS, Answering, Delta
from qlora_ui.engine.chat_cache import ChatCache
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.chat_step import ForwardPass
from qlora_ui.engine.evaluate_options import LABEL_TOKENS, EvaluateOptions, evenly
from qlora_ui.settings.sampling import Sampling

SIDES = ("base", "adapter")
"""Who answers, as the chat's model knows them too."""


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


def answer_questions(
    model: ChatModel,
    conversations: Sequence[Conversation],
    options: EvaluateOptions,
    *,
    pass_on: Callable[[], None],
    between: Callable[[int, int], None],
    is_cancelled: IsCancelled,
) -> list[Answered]:
    """Greedy answers of base and adapter to held-back questions, both in one batch where they can share one.

    `between` is told the number of questions done and that of all before each, and may raise to stop.
    """
    questions = [item for item in map(question_of, conversations) if item]
    are_labels = options.num_answers != 0 and are_as_labels([len(model.answer_ids(one)) for one in questions])
    asked = [questions[place] for place in evenly(len(questions), options.num_asked(are_labels=are_labels))]
    cache = ChatCache(model.num_layers, model.context_tokens, BUCKET_TOKENS[model.device.type])
    forward = ForwardPass(model.base, cache, model.switch, model.device, capture=model.device.type == "cuda", tokens=model.tokens)
    answering = Answering(model, cache, forward, pass_on)
    groups = [SIDES] if model.switch.can_share(list(SIDES)) else [(side,) for side in SIDES]
    answers = []
    for index, one in enumerate(asked):
        between(index, len(asked))
        before = one.messages[:-1]
        ids, wanted = model.prompt_ids(before, one.tools), model.answer_ids(one)
        if len(ids) + 1 >= model.context_tokens:
            continue
        longest = options.longest_answer(len(wanted), is_among_labels=are_labels)
        said, ends = _answer_all(answering, groups, ids, longest, is_cancelled)
        cut = tuple(side for side in SIDES if ends.get(side) in ("length", "context"))
        is_measured = len(wanted) <= min(longest, model.context_tokens - len(ids))
        # As answers are read: without the tokens that only steer.
        reference = model.tokenizer.decode(wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        answers.append(Answered(last_words(before), reference, said["base"], said["adapter"], cut, is_measured))
    return answers


def _answer_all(
    answering: Answering, groups: Sequence[Sequence[str]], ids: Sequence[int], longest: int, is_cancelled: IsCancelled
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What each side says to one prompt, and what ended it."""
    said: defaultdict[str, str] = defaultdict(str)
    ends: dict[str, str] = {}

    def take(delta: Delta) -> None:
        said[delta.side] += delta.text
        ends[delta.side] = delta.stopped_by

    greedy = Sampling(temperature=0, max_tokens=longest)
    with torch.inference_mode():
        for group in groups:
            keys = {side: side for side in group}
            answering.answer(dict.fromkeys(group, ids), keys, greedy, take, is_cancelled, known=list(SIDES))
    return said, ends


def are_as_labels(lengths: Sequence[int]) -> bool:
    """Whether nearly all of these references, by their tokens, are as short as labels."""
    return bool(lengths) and sorted(lengths)[len(lengths) * 9 // 10] <= LABEL_TOKENS


def question_of(conversation: Conversation) -> Conversation | None:
    """The turns up to the last answer that is learned, with it; None where there is none, or nothing before it."""
    messages = conversation.messages
    places = [at for at, turn in enumerate(messages) if turn.role == "assistant" and turn.is_learned and (turn.content or turn.tool_calls)]
    return replace(conversation, messages=messages[: places[-1] + 1]) if places and places[-1] else None


def last_words(messages: Sequence[Message]) -> str:
    """What an answer is given to: the last question, with what tools told since."""
    first = max((at for at, turn in enumerate(messages) if turn.role == "user"), default=len(messages) - 1)
    return "\n".join(turn.content for turn in messages[first:] if turn.content)


def task_scores(answers: Sequence[Answered]) -> list[dict[str, Any]]:
    """The metrics that fit the references, for both sides, of the answers that can be measured."""
    measured = [answer for answer in answers if answer.is_measured]
    references = [without_thinking(answer.reference) for answer in measured]
    tasks = []
    for name in applicable(references):
        task: dict[str, Any] = {"metric": name}
        for side in SIDES:
            said = [without_thinking(getattr(answer, side)) for answer in measured]
            if name in TEXT_METRICS:
                pairs = zip(said, references, strict=True)
                task[side] = asdict(mean_share([TEXT_METRICS[name](text, reference) for text, reference in pairs]))
            else:
                scores = label_scores(said, references)
                task[side] = {"value": scores.pop("f1"), **scores}
        tasks.append(task)
    return tasks
