"""“Make it fit” and “use the memory you have”: changes in the order that costs the user least, at a constant effective batch.

Fitting first recomputes more (the same result, slower), then splits the batch (the same result, a little slower), then compresses
scales and optimizer (nearly the same result), and only then asks for what changes the result: shorter conversations, a smaller adapter.
What is left over keeps layers from being computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.units import format_bytes, format_percent
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.estimate.memory import MemoryEstimate, estimate_memory
from qlora_ui.estimate.workload import DataShape
from qlora_ui.hardware.devices import DeviceProfile
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig

RESERVE_SHARE = 0.03
"""Kept free of what is free: the estimate's own error."""
MAX_TOKENS_AT_ONCE = 16384
"""Beyond that many positions a larger micro-batch is no faster."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to change; nothing is applied without the user's consent."""

    changes: dict[str, tuple[Any, Any]]
    """Option path to (old, new)."""
    before: MemoryEstimate
    after: MemoryEstimate
    fits: bool
    """Whether it fits once the changes are made."""
    sentences: tuple[str, ...]
    share_of_rows_cut: float | None = None
    """Share of conversations that a shorter length would cut or leave out; None where lengths are unknown or the length stays."""


@dataclass(frozen=True, slots=True)
class _Problem:
    facts: ModelFacts
    device: DeviceProfile
    data: DataShape | None

    def estimate(self, config: RunConfig) -> MemoryEstimate:
        return estimate_memory(self.facts, config, self.device, self.data)

    def seconds(self, config: RunConfig) -> float:
        data = self.data or DataShape()
        return estimate_duration(self.facts, config, self.device, data.num_rows, data.mean_tokens).total_s

    @property
    def budget_bytes(self) -> int:
        return round(self.device.free_bytes * (1 - RESERVE_SHARE))

    def fits(self, config: RunConfig) -> bool:
        return self.estimate(config).total_bytes <= self.budget_bytes


def make_it_fit(facts: ModelFacts, config: RunConfig, device: DeviceProfile, data: DataShape | None = None) -> Advice:
    """The changes after which the run fits what is free on the device; `fits` is False where nothing is enough.

    A long way is cut short: of the steps that were tried, those that are not needed in the end are taken back.
    """
    problem = _Problem(facts, device, data)
    if problem.fits(config):
        return _advice(problem, config, config)
    taken: list[dict[str, Any]] = []
    current = config
    for change in _ladder(facts, config, data):
        changed = _try(current, change)
        if changed is None or problem.estimate(changed).total_bytes >= problem.estimate(current).total_bytes:
            continue
        current, taken = changed, [*taken, change]
        if problem.fits(current):
            break
    if not problem.fits(current):
        return _advice(problem, config, current)
    best = _without_needless(problem, config, taken, current)
    return _advice(problem, config, _fewer_recomputed(problem, best) if best.train.checkpointing != "none" else best)


def use_the_memory(facts: ModelFacts, config: RunConfig, device: DeviceProfile, data: DataShape | None = None) -> Advice:
    """Changes that turn free memory into speed without touching the result: fewer recomputed layers, larger micro-batches."""
    problem = _Problem(facts, device, data)
    if not problem.fits(config):
        return _advice(problem, config, config)
    current = config
    if config.train.checkpointing != "none":
        current = _fewer_recomputed(problem, current)
    batch, accumulation = current.train.batch_size, current.train.accumulation
    while accumulation % 2 == 0 and 2 * batch * current.data.max_length <= MAX_TOKENS_AT_ONCE:
        batch, accumulation = 2 * batch, accumulation // 2
        larger = _try(current, {"train.batch_size": batch, "train.accumulation": accumulation})
        # On a CPU, and wherever rows are padded, a larger batch may compute more and not be faster.
        if larger is None or not problem.fits(larger) or problem.seconds(larger) >= problem.seconds(current):
            break
        current = larger
    if current.train.checkpointing == "none" and config.quant.double_quant and not device.is_cpu:
        plain_scales = _try(current, {"quant.double_quant": False})
        if plain_scales is not None and problem.fits(plain_scales):
            current = plain_scales
    return _advice(problem, config, current)


def _fewer_recomputed(problem: _Problem, config: RunConfig) -> RunConfig:
    """No recomputation where that fits, else as many kept layers as do; by halving, since memory grows with each."""
    nothing = _try(config, {"train.checkpointing": "none", "train.kept_layers": 0})
    if nothing is not None and problem.fits(nothing):
        return nothing
    low, high, best = config.train.kept_layers, problem.facts.num_layers - 1, config
    while low < high:
        middle = (low + high + 1) // 2
        tried = _try(config, {"train.checkpointing": "partly", "train.kept_layers": middle})
        if tried is not None and problem.fits(tried):
            low, best = middle, tried
        else:
            high = middle - 1
    return best


def _ladder(facts: ModelFacts, config: RunConfig, data: DataShape | None) -> Iterator[dict[str, Any]]:
    """Changes from the one that costs least to the one that costs most."""
    batch, accumulation = config.train.batch_size, config.train.accumulation
    if config.train.checkpointing == "none":
        for share in (0.5, 0.25):
            yield {"train.checkpointing": "partly", "train.kept_layers": max(1, round(facts.num_layers * share))}
    yield {"train.checkpointing": "all", "train.kept_layers": 0}
    if config.eval.batch_size > 1:
        yield {"eval.batch_size": 1}
    while batch > 1:
        divisor = 2 if batch % 2 == 0 else batch
        batch, accumulation = batch // divisor, accumulation * divisor
        yield {"train.batch_size": batch, "train.accumulation": accumulation}
    yield {"quant.double_quant": True}
    if config.model.attention == "eager":
        yield {"model.attention": "auto"}
    if config.lora.dropout:
        yield {"lora.dropout": 0.0}
    if config.train.optimizer in ("adamw", "adamw_fp32", "paged_adamw_32bit"):
        yield {"train.optimizer": "adamw_8bit"}
    if config.lora.dora:
        yield {"lora.dora": False}
    if config.lora.modules_to_save:
        yield {"lora.modules_to_save": ()}
    for length in _shorter(config, data):
        yield {"data.max_length": length}
    for rank in (64, 32, 16, 8):
        if config.lora.rank > rank:
            yield {"lora.rank": rank}
    names = {linear.name for linear in facts.linears}
    if set(ATTENTION) <= names:
        yield {"lora.targets": ATTENTION}
    for length in (512, 256, 128):
        if config.data.max_length > length:
            yield {"data.max_length": length}


def _shorter(config: RunConfig, data: DataShape | None) -> Iterator[int]:
    """Lengths to try: first the longest conversation there is (cuts nothing), then ever shorter ones down to 512."""
    longest = data.longest_tokens if data is not None else None
    length = config.data.max_length
    if longest is not None and longest < length:
        yield max(64, -(-longest // 64) * 64)
    while length > 512:
        length = max(512, length // 2 if length > 2048 else length * 3 // 4 // 64 * 64)
        yield length


def _try(config: RunConfig, change: dict[str, Any]) -> RunConfig | None:
    try:
        changed = config.changed(change)
    except SettingsError:
        return None
    return changed if changed != config else None


def _without_needless(problem: _Problem, start: RunConfig, taken: list[dict[str, Any]], found: RunConfig) -> RunConfig:
    """Take back, the most costly first, every option whose change turned out not to be needed."""
    order = [path for change in reversed(taken) for path in change]
    best = found
    for paths in _together(order):
        old = {path: start.get(path) for path in paths if best.get(path) != start.get(path)}
        tried = _try(best, old) if old else None
        if tried is not None and problem.fits(tried):
            best = tried
    return best


def _together(order: list[str]) -> list[tuple[str, ...]]:
    """Options that only make sense changed together."""
    pairs = {"train.batch_size": "batch", "train.accumulation": "batch", "train.checkpointing": "layers", "train.kept_layers": "layers"}
    groups: dict[str, list[str]] = {}
    for path in dict.fromkeys(order):
        groups.setdefault(pairs.get(path, path), []).append(path)
    return [tuple(paths) for paths in groups.values()]


def _advice(problem: _Problem, old: RunConfig, new: RunConfig) -> Advice:
    before, after = problem.estimate(old), problem.estimate(new)
    differences = old.differences(new)
    cut = _share_cut(new, problem.data) if "data.max_length" in differences else None
    fits = after.total_bytes <= problem.budget_bytes
    return Advice(differences, before, after, fits, _sentences(problem, old, new, before, after, cut, fits=fits), cut)


def _share_cut(config: RunConfig, data: DataShape | None) -> float | None:
    if data is None or not data.lengths:
        return None
    return sum(length > config.data.max_length for length in data.lengths) / len(data.lengths)


def _sentences(  # noqa: PLR0917
    problem: _Problem, old: RunConfig, new: RunConfig, before: MemoryEstimate, after: MemoryEstimate, cut: float | None, *, fits: bool
) -> tuple[str, ...]:
    free = format_bytes(problem.device.free_bytes)
    if old == new:
        if fits:
            return (f"It fits: {format_bytes(after.total_bytes)} of {free} free.",)
        return (f"It needs {format_bytes(before.total_bytes)}, and {free} are free.",)
    words = [f"{format_bytes(before.total_bytes)} → {format_bytes(after.total_bytes)} of {free} free."]
    if new.effective_batch == old.effective_batch and new.train.batch_size != old.train.batch_size:
        words.append(f"The effective batch stays {new.effective_batch}.")
    if new.train.checkpointing != old.train.checkpointing or new.train.kept_layers != old.train.kept_layers:
        words.append("Recomputing changes the time and nothing else.")
    if cut is not None:
        what = "left out" if new.data.too_long == "drop" else "cut"
        words.append(f"{format_percent(cut)} of the conversations would be {what}." if cut else f"No conversation would be {what}.")
    if not fits:
        words.append("Even so it does not fit: choose a smaller model, or close other programs that use the memory.")
    return tuple(words)
