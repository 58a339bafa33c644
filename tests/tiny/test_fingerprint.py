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
from qlora_ui.engine.plan import changed_settings, fingerprint
from qlora_ui.engine.resume import check_same
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings import migrate
from qlora_ui.settings.option import option
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import TrainSection

ROWS = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]})
CONFIG = RunConfig().changed({"lora.rank": 8, "train.epochs": 2.0, "data.sources": [{"id": "rows.jsonl"}]})


class LaterTrain(TrainSection):
    """As an update may have it: one option more, and another default."""

    brand_new: float = option(0.5, "An option that nobody knew.", label="New")
    weight_decay: float = option(0.01, "Another default.", label="Weight decay")


class LaterConfig(RunConfig):
    """The settings of that update."""

    train: LaterTrain = Field(default_factory=LaterTrain)


def paused(config: RunConfig, *, without: str = "") -> Checkpoint:
    # A manifest is JSON: tuples come back as lists.
    notes = json.loads(json.dumps(fingerprint(config, ROWS)))
    return Checkpoint(Path("checkpoint-4"), 4, 0, {name: value for name, value in notes.items() if name != without})


def check(checkpoint: Checkpoint, config: RunConfig) -> None:
    check_same(checkpoint, fingerprint(config, ROWS), config)


def later(**changes: object) -> RunConfig:
    """The run's config.yaml as the update reads it."""
    nested = CONFIG.model_dump()
    return LaterConfig.model_validate({**nested, "train": {**nested["train"], **changes}})


def test_an_option_that_an_update_adds_does_not_refuse_a_paused_run() -> None:
    check(paused(CONFIG), later())
    with pytest.raises(RunError, match=r"the settings changed since step 4.*the train\.brand_new was 0\.5 and is 0\.25"):
        check(paused(CONFIG), later(brand_new=0.25))


def test_a_default_that_an_update_changes_does_not_refuse_a_paused_run() -> None:
    assert later().train.weight_decay == 0.0
    check(paused(CONFIG), later())
    with pytest.raises(RunError, match=r"“Weight decay” was 0\.0 and is 0\.01"):
        check(paused(CONFIG), later(weight_decay=0.01))


def test_an_option_of_an_update_stands_at_what_the_app_did_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(migrate, "BEFORE", {"quant.double_quant": False})
    run = RunDir(tmp_path)
    run.write_config(CONFIG)
    assert run.config() == CONFIG
    run.config_path.write_text(run.config_path.read_text(encoding="utf-8").replace("  double_quant: true\n", ""), encoding="utf-8")
    assert run.config().quant.double_quant is False
    notes = fingerprint(CONFIG, ROWS)
    del notes["settings"]["quant"]["double_quant"]
    assert changed_settings(run.config(), notes) == []


def test_a_run_that_was_paused_by_an_earlier_version_is_taken_up() -> None:
    checkpoint = paused(CONFIG, without="settings")
    # As such a version wrote it. Where a changed default makes it another, `_settings_mark` has to go on leaving the former one out.
    assert checkpoint.notes["settings_sha256"] == "ddc52cb36c4a18ee34ee2fd0c7ef898ecac7ef55a095f2ef02624dbe01c9e2af"
    check(checkpoint, CONFIG)
    with pytest.raises(RunError, match="an earlier version of the app saved it"):
        check(checkpoint, CONFIG.changed({"lora.rank": 32}))


def test_a_run_that_was_paused_by_the_first_version_is_taken_up() -> None:
    nested = CONFIG.model_dump(mode="json")
    kept = {name: nested[name] for name in ("model", "quant", "lora", "data", "train")}
    kept["lora"] = {key: value for key, value in nested["lora"].items() if key != "start_from"}
    kept["train"] = {key: value for key, value in nested["train"].items() if key not in ("batch_size", "accumulation")}
    text = json.dumps({**kept, "effective_batch": CONFIG.effective_batch, "share": CONFIG.eval.share}, sort_keys=True)
    notes = {**paused(CONFIG, without="settings").notes, "settings_sha256": hashlib.sha256(text.encode()).hexdigest()}
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
    for without in ("", "settings"):
        assert (not changed_settings(base.changed(values), paused(base, without=without).notes)) is is_same


def test_a_base_that_was_replaced_refuses_and_one_that_nobody_noted_does_not() -> None:
    marks, checkpoint = fingerprint(CONFIG, ROWS), paused(CONFIG)
    noted = Checkpoint(checkpoint.path, 4, 0, {**checkpoint.notes, "weights_mark": "a"})
    check_same(noted, {**marks, "weights_mark": "a"}, CONFIG)
    check_same(checkpoint, {**marks, "weights_mark": "b"}, CONFIG)
    with pytest.raises(RunError, match=r"the base model changed since step 4.*Put the former model back"):
        check_same(noted, {**marks, "weights_mark": "b"}, CONFIG)
