"""By which marks a paused run is known again: after an update of the app too, and not after a change of what it trains on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from datasets import Dataset
from pydantic import Field

from qlora_ui.base.errors import RunError
from qlora_ui.engine.checkpoints import Checkpoint
from qlora_ui.engine.plan import fingerprint, former_marks
from qlora_ui.engine.resume import check_same
from qlora_ui.settings.option import option
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import TrainSection

ROWS = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]})
CONFIG = RunConfig().changed({"lora.rank": 8, "train.epochs": 2.0, "data.sources": [{"id": "rows.jsonl"}]})


class LaterTrain(TrainSection):
    """As an update may have it."""

    brand_new: float = option(0.5, "An option that nobody knew.", label="New")


class LaterConfig(RunConfig):
    """The settings of that update."""

    train: LaterTrain = Field(default_factory=LaterTrain)


def paused(config: RunConfig) -> Checkpoint:
    return Checkpoint(Path("checkpoint-4"), 4, 0, fingerprint(config, ROWS))


def check(checkpoint: Checkpoint, config: RunConfig) -> None:
    check_same(checkpoint, fingerprint(config, ROWS), former_marks(config))


def later(**changes: object) -> RunConfig:
    nested = CONFIG.model_dump()
    return LaterConfig.model_validate({**nested, "train": {**nested["train"], **changes}})


def test_an_option_that_an_update_adds_does_not_refuse_a_paused_run() -> None:
    check(paused(CONFIG), later())
    with pytest.raises(RunError, match="the settings changed"):
        check(paused(CONFIG), later(brand_new=0.25))


def test_a_run_that_was_paused_by_the_first_version_is_taken_up() -> None:
    nested = CONFIG.model_dump(mode="json")
    kept = {name: nested[name] for name in ("model", "quant", "lora", "data", "train")}
    kept["lora"] = {key: value for key, value in nested["lora"].items() if key != "start_from"}
    kept["train"] = {key: value for key, value in nested["train"].items() if key not in ("batch_size", "accumulation")}
    text = json.dumps({**kept, "effective_batch": CONFIG.effective_batch, "share": CONFIG.eval.share}, sort_keys=True)
    notes = {**fingerprint(CONFIG, ROWS), "settings_sha256": hashlib.sha256(text.encode()).hexdigest()}
    checkpoint = Checkpoint(Path("checkpoint-4"), 4, 0, notes)
    check(checkpoint, CONFIG)
    with pytest.raises(RunError, match="the settings changed"):
        check(checkpoint, CONFIG.changed({"lora.rank": 16}))


@pytest.mark.parametrize(
    ("values", "is_same"),
    [
        ({"train.batch_size": 2, "train.accumulation": 8}, True),
        ({"lora.start_from": "latest"}, True),
        ({"output.log_every": 5}, True),
        ({"lora.rank": 16}, False),
        ({"train.accumulation": 2}, False),
        ({"data.sources": [{"id": "rows.jsonl", "weight": 2.0}]}, False),
        ({"eval.share": 0.3}, False),
    ],
)
def test_what_an_exact_continuation_needs_unchanged(values: dict[str, object], is_same: bool) -> None:
    base = CONFIG.changed({"train.batch_size": 4, "train.accumulation": 4})
    marks = fingerprint(base.changed(values), ROWS)
    assert (marks == fingerprint(base, ROWS)) is is_same
