"""The settings of a page: what the next visit finds of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qlora_ui.base.errors import DataError, SettingsError
from qlora_ui.base.files import write_json
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.app import build
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.elsewhere import elsewhere_html
from qlora_ui.ui.new_data import named_source
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.recipe import PresetPicker, _advice, _layer_choices
from qlora_ui.ui.views.ready import ready_html
from tests.journals import write_run


@pytest.mark.parametrize(("name", "found"), [("demo", "demo"), ("", ""), ("deleted", ""), ("broken", ""), (None, "")])
def test_a_preset_that_is_gone_is_not_picked_again_and_its_settings_stay(workspace: Workspace, name: str | None, found: str) -> None:
    (workspace.presets / "broken.yaml").write_text("lora: [", encoding="utf-8")
    write_json(workspace.root / "draft.json", {"preset": name, "settings": {"lora": {"rank": 7}}})
    preset, config = Service(workspace).kept_draft.last()
    assert (preset, config.lora.rank) == (found, 7)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"preset": "demo", "settings": {"lora": {"ra', "could not be read. They"),
        ("[1]", "could not be read. They"),
        ('{"preset": "demo", "settings": {"lora": {"rank": 7, "flavour": 1}}}', "lora.flavour"),
    ],
)
def test_settings_that_cannot_be_read_are_kept_aside_and_told_of(workspace: Workspace, text: str, why: str) -> None:
    path = workspace.root / "draft.json"
    path.write_text(text, encoding="utf-8")
    service = Service(workspace)
    assert service.kept_draft.last()[0] == service.kept_draft.last()[0] == "demo"
    (aside,) = workspace.root.glob("draft-unreadable-*.json")
    assert aside.read_text(encoding="utf-8") == text and not path.exists()
    assert why in service.kept_draft.lost
    assert aside.name in ready_html(service.draft({}), service.kept_draft.lost)


def test_the_first_visit_has_lost_nothing(workspace: Workspace) -> None:
    service = Service(workspace)
    assert service.kept_draft.last()[0] == "demo" and not service.kept_draft.lost


def test_a_page_that_nobody_touches_puts_no_old_settings_back(workspace: Workspace) -> None:
    service = Service(workspace)
    blocks = build(service)

    def raised(elem_id: str, event: str, rank: int) -> None:
        """What a page with that adapter size asks for when a component of it raises an event."""
        source = next(block for block in blocks.blocks.values() if getattr(block, "elem_id", "") == elem_id)
        (handler,) = (fn for fn in blocks.fns.values() if (source._id, event) in fn.targets and str(fn.name).startswith("_form"))
        shown = {"q-is-restored": "yes", "lora-rank": rank}
        data: dict[Any, Any] = {one: shown.get(str(one.elem_id), one.value) for one in handler.inputs}
        assert handler.fn is not None
        handler.fn(SimpleNamespace(session_hash=f"page with {rank}"), data)

    raised("lora-rank", "input", 77)
    raised("q-pulse", "found", 16)
    raised("lora-rank", "input", 16)  # as a press of a button does, or leaving a field
    service.stop_reading()
    assert Service(workspace).kept_draft.last()[1].lora.rank == 77


def test_a_page_is_told_of_what_another_page_changed_until_it_takes_it_or_keeps_its_own(workspace: Workspace) -> None:
    service = Service(workspace)
    kept = service.kept_draft

    def drawn(tab: str, values: dict[str, Any], *, is_edit: bool = False) -> str:
        draft = service.draft(values)
        kept.remember(draft, tab, is_edit=is_edit)
        return elsewhere_html(replace(draft, elsewhere=kept.elsewhere(draft, tab)))

    for tab in ("A", "B"):
        assert drawn(tab, {}) == ""
    told = service.num_news
    assert drawn("A", {"train.learning_rate": 0.0005, "output.name": "mine"}, is_edit=True) == ""
    assert service.num_news > told, "B draws itself anew"
    bar = drawn("B", {"lora.rank": 16})
    assert "Learning rate" in bar and "<b>0.0005</b>" in bar and "Run name" not in bar and "take-over" in bar
    # An edit there turns it round: the last one wins, and the other page says so.
    assert drawn("B", {"lora.rank": 32}, is_edit=True) == "" and kept.last()[1].lora.rank == 32
    assert "<b>32</b>" in drawn("A", {"train.learning_rate": 0.0005})
    kept.insist("A")
    assert drawn("A", {"train.learning_rate": 0.0005}, is_edit=True) == "" and kept.last()[1].train.learning_rate == 0.0005
    # Taken over, as its button does.
    assert drawn("B", {"train.learning_rate": 0.0005}, is_edit=True) == "" and drawn("A", {"train.learning_rate": 0.0005}) == ""


@pytest.mark.parametrize("typed", ["~nobody-of-that-name/x", "a" * 300, "x/" * 3000, '{"prompt": "' + "pasted into the wrong field " * 50])
def test_what_can_be_no_path_is_told_and_breaks_no_page(workspace: Workspace, typed: str) -> None:
    service = Service(workspace)
    for path, value in (("model.id", typed), ("data.sources", [{"id": typed}])):
        draft = service.draft({"model.id": "builtin:smollm2-135m-instruct", path: value})
        assert [problem.where for problem in draft.problems] == [path] and not draft.is_ready
        assert len(draft.problems[0].what) < 300
    with pytest.raises(DataError, match=r"neither a file nor a name on the Hub"):
        named_source(typed, workspace)


def _read(service: Service, values: dict[str, Any]) -> Draft:
    """The draft once the data was read and its columns were looked at."""
    values = {"model.id": "builtin:smollm2-135m-instruct", **values}
    inspection = service.draft(values).inspection
    assert inspection is not None and inspection.done.wait(30)
    peek = service.draft(values).peek
    assert peek is not None and peek.done.wait(30)
    return service.draft(values)


def test_the_columns_of_any_dataset_of_a_mix_can_be_mapped(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, table = tmp_path / "known.jsonl", tmp_path / "table.csv"
    known.write_text("".join(json.dumps({"prompt": f"Q{n}", "completion": f"Yes {n}"}) + "\n" for n in range(12)), encoding="utf-8")
    table.write_text("ask,say\n" + "".join(f"Question {n}?,Answer {n}\n" for n in range(12)), encoding="utf-8")
    # A dataset of the Hub is mapped as a file is, once it is here.
    monkeypatch.setattr("qlora_ui.data.hub.download", lambda *given, **options: [table])
    service, unknown = Service(workspace), DataSource(id="hub:owner/name")
    sources = [{"id": str(known)}, {"id": unknown.id}]
    draft = _read(service, {"data.sources": sources})
    assert draft.mapped == unknown and draft.peek is not None and draft.peek.answer is not None
    assert draft.peek.answer.columns == ("ask", "say") and not draft.is_ready
    # One column is missing: that is one thing to change, although the file cannot be read without it.
    half = service.draft({"data.sources": [{"id": unknown.id}], "data.format": "columns", "data.mapping": {"user": "ask"}})
    assert half.inspection is not None and half.inspection.done.wait(30)
    half = service.draft(half.values)
    assert [problem.what for problem in half.problems if problem.where.startswith("data")] == ["no column is mapped to the answer"]
    meant = {"data.format": "columns", "data.mapping": {"user": "ask", "assistant": "say"}}
    draft = _read(service, {"data.sources": [*sources, {"id": "builtin:plain-pirate"}], **meant})
    assert draft.report is not None and draft.report.num_rows == 24 + 120 and draft.mapped == unknown
    assert [file.format for file in draft.report.sources] == ["prompt-completion", "columns", "messages"]


def test_a_layer_that_the_model_does_not_have_stops_start(workspace: Workspace) -> None:
    values = {"model.id": "builtin:smollm2-135m-instruct", "data.sources": [{"id": "builtin:plain-pirate"}]}
    draft = Service(workspace).draft({**values, "lora.targets": ["q_proj", "query_key_value"]})
    assert [problem.what for problem in draft.problems_of("lora.targets")] == ["The model has no layer named query_key_value"]
    targets, whole = (update["choices"] for update in _layer_choices(draft))
    assert targets[:3] == ["all-linear", "q_proj", "k_proj"] and "down_proj" in targets and whole[:3] == ["embed_tokens", "lm_head", "norm"]
    # Every choice is one that the model can train.
    good = {**values, "lora.targets": targets[1:], "lora.modules_to_save": whole}
    assert not any(problem.where.startswith("lora") for problem in Service(workspace).draft(good).problems)


def test_what_is_not_on_this_computer_stops_start(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"model.id": "builtin:smollm2-135m-instruct", "data.sources": [{"id": "builtin:plain-pirate"}]}
    split = {"launch.where": "process", "launch.num_processes": 2, "launch.sharding": "fsdp", "quant.storage": "bfloat16"}
    service, run = Service(workspace), write_run(workspace, end="stopped")
    service.gpus = lambda: []  # type: ignore[method-assign]

    def told(**more: Any) -> list[str]:
        problems = service.draft({**values, **{path.replace("__", "."): value for path, value in more.items()}}).problems
        return [f"{problem.where}: {problem.what}. {problem.why}. {problem.fix}" for problem in problems]

    for is_there in (False, True):
        monkeypatch.setattr("qlora_ui.ui.draft.has_card", lambda is_there=is_there: is_there)
        assert bool(told(launch__device="cuda")) != is_there and not told(launch__device="auto")
        assert bool(told(**split)) != is_there
    service.gpus = lambda: cast(Any, [object()])  # type: ignore[method-assign]
    two = {"launch.where": "process", "launch.num_processes": 2}
    assert "wants 2 graphics cards, and this computer has 1" in str(told(**two)) and not told(**two, launch__device="cpu")
    assert "lora.start_from: " in str(told(lora__start_from="no such run"))
    for typed in ("/" + "a" * 300, "a" * 300, "\0", "~nobody-of-that-name/x"):
        assert len(told(lora__start_from=typed)) == 1
    assert "adapter_config.json or adapter_model.safetensors is missing" in str(told(lora__start_from=run.id))
    write_json(run.adapter / "adapter_config.json", {"r": 4, "lora_alpha": 32})
    assert "Its adapter size is 4, that of this run 16. Set the adapter size to 4" in str(told(lora__start_from=run.id))
    assert not told(lora__start_from=run.id, lora__rank=4, lora__alpha=32)
    # It will have saved something by then.
    assert not told(lora__start_from=write_run(workspace, end="live", done=1).id)


def test_presses_reach_the_app_each_of_them_and_what_they_are_refused_for_the_page(workspace: Workspace) -> None:
    blocks = build(Service(workspace))

    def presses(*elem_ids: str) -> list[Any]:
        ours = {block._id for block in blocks.blocks.values() if getattr(block, "elem_id", "") in elem_ids}
        return [fn for fn in blocks.fns.values() if any(target in ours and event == "act" for target, event in fn.targets)]

    model, hub = presses("q-models", "q-model-facts", "q-hub-found"), presses("q-hub-data-found", "q-hub-data-look")
    runs = presses("runs-table", "runs-compare", "runs-details")
    data, done = presses("q-verdict-body", "q-kept-files", "q-sources"), presses("evaluate-view", "export-view", "runs-storage")
    assert (len(model), len(hub), len(runs), len(data), len(done)) == (3, 2, 6, 4, 6)
    # Gradio shows no failure of an event that goes past its queue, as a second download's.
    assert all(fn.queue for fn in model)
    # Else it drops what is pressed before the answer to the press before: one of three boxes that are ticked quickly.
    assert all(fn.trigger_mode == "multiple" for fn in (*model, *hub, *runs, *data, *done))


def test_a_page_that_asks_while_its_preset_is_deleted_is_answered() -> None:
    picker = PresetPicker([("No preset", ""), ("Mine", "mine")], value="mine")
    assert picker.get_block_name() == "dropdown" and picker.preprocess("mine") == "mine"
    picker.choices = [("No preset", "")]  # as the deletion leaves it, while the page still sends what it shows
    assert picker.preprocess("mine") == "" and picker.preprocess(None) == ""


def test_what_is_wrong_with_the_model_is_no_matter_of_a_download(workspace: Workspace) -> None:
    # “Make it fit” sent somebody with a folder that is not there to download it.
    values = {"model.id": str(workspace.root / "nowhere")}
    form = SimpleNamespace(values=lambda data: values)
    page = cast(Any, SimpleNamespace(service=Service(workspace), form=form, preset="preset", device="device"))
    with pytest.raises(SettingsError, match="There is no folder"):
        _advice(page, {}, "fit")
