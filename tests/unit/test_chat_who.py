"""Who the Chat tab talks to before anybody has chosen."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import cast

import orjson
import pytest
from model_files import write_model

from qlora_ui.base.errors import ModelError
from qlora_ui.data.collect import kept_rows
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.runs.held_back import held_back_rows
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.action import Action
from qlora_ui.ui.chat_desk import ChatDesk
from qlora_ui.ui.chat_record import TurnNotes
from qlora_ui.ui.page import Page
from qlora_ui.ui.run_actions import perform
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.chat import _runs_version, _talk, choose_run
from qlora_ui.ui.tabs.model import _delete
from qlora_ui.ui.views.run import head_html
from tests.journals import write_run


def looked(service: Service) -> tuple[str, str]:
    """Who is talked to and on which side of the switch, as a page that looks at the tab is told."""
    service.run_lists.forget()
    drawn = _talk(service, {})
    assert not drawn["failure"] and drawn["canCompare"] == drawn["who"].startswith("run|")
    return drawn["who"], drawn["mode"]


def test_a_tab_that_was_opened_before_the_first_run_talks_to_its_adapter_afterwards(workspace: Workspace) -> None:
    service = Service(workspace)
    assert looked(service)[0].startswith("model|builtin:")
    run = write_run(workspace, end="done")
    assert looked(service) == (f"run|{run.id}|", "both")
    newer = write_run(workspace, end="done")
    assert looked(service)[0] == f"run|{newer.id}|"


def test_what_was_chosen_stays(workspace: Workspace) -> None:
    service = Service(workspace)
    first = write_run(workspace, end="done")
    choose_run(service, first.id)
    write_run(workspace, end="done")
    assert looked(service)[0] == f"run|{first.id}|"
    assert _talk(service, {"do": "choose", "key": "model|builtin:smollm2-135m-instruct|"})["mode"] == "base"
    write_run(workspace, end="done")
    assert looked(service)[0].startswith("model|builtin:")


def test_older_runs_are_told_of_and_one_that_is_talked_to_stays_in_the_list(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ui.ui.tabs.chat.MOST_RUNS", 2)
    service, runs = Service(workspace), [write_run(workspace, end="done") for _ in range(4)]
    assert perform(cast(Page, SimpleNamespace()), Action("all-runs", "", "", False, {})).tab == "runs"

    def offered() -> list[str]:
        service.run_lists.forget()
        return [option["key"] or option["label"] for option in _talk(service, {})["targets"][0]["options"]]

    newest = [f"run|{run.id}|" for run in (runs[3], runs[2])]
    assert offered() == [*newest, "2 older: on the Runs tab, under ⋯, “Chat with it”"]
    choose_run(service, runs[0].id)
    assert offered() == [*newest, f"run|{runs[0].id}|", "1 older: on the Runs tab, under ⋯, “Chat with it”"]


def test_the_checkpoint_that_is_the_adapter_is_offered_only_while_it_is_talked_to(workspace: Workspace) -> None:
    service, run = Service(workspace), write_run(workspace, end="done")
    for folder, weights in (
        (run.adapter, b"after"),
        *((run.checkpoints / f"checkpoint-{n}", b"after" if n > 9 else b"early") for n in (5, 10)),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(weights)

    def offered(checkpoint: str) -> list[str]:
        (runs, _) = _talk(service, {"do": "choose", "key": f"run|{run.id}|{checkpoint}"})["targets"]
        return [option["key"].rpartition("|")[2] for option in runs["options"]]

    assert offered("") == ["", "checkpoint-5"]
    assert offered("checkpoint-10") == ["", "checkpoint-10", "checkpoint-5"]


def test_a_run_that_is_paused_can_be_talked_to_as_far_as_it_is(workspace: Workspace) -> None:
    service, run = Service(workspace), write_run(workspace, end="paused")
    folder = run.checkpoints / "checkpoint-57"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    newest = write_run(workspace, end="done")
    assert f"run|{run.id}|checkpoint-57" in str(_talk(service, {})["targets"]) and looked(service)[0] == f"run|{newest.id}|"
    assert "Chat with it so far" in head_html(service.view(run.id))
    choose_run(service, run.id)
    drawn = _talk(service, {})
    assert drawn["who"] == f"run|{run.id}|checkpoint-57" and f"run|{run.id}|'" not in str(drawn["targets"])


def test_the_page_says_where_another_model_begins(workspace: Workspace) -> None:
    service = Service(workspace)
    looked(service)
    service.desk.record.history.ask("How do I boil an egg?")
    service.desk.record.history.add("base", "In water.")
    service.desk.record.notes.append(TurnNotes())
    assert "q-turn-end" not in _talk(service, {})["turns"][0]
    choose_run(service, write_run(workspace, end="done").id)
    assert "q-turn-end" in _talk(service, {})["turns"][0]


def test_a_page_is_sent_the_turns_that_it_lacks(workspace: Workspace) -> None:
    service = Service(workspace)
    for word in ("one", "two"):
        service.desk.record.history.ask(word)
        service.desk.record.history.add("base", f"{word} again")
        service.desk.record.notes.append(TurnNotes())
    first = _talk(service, {})
    assert all("again" in html for html in first["turns"]) and len(first["marks"]) == 2
    assert _talk(service, {"has": first["marks"]})["turns"] == [None, None]
    service.desk.record.history.add("base", " and more")
    had, changed = _talk(service, {"has": first["marks"]})["turns"]
    assert had is None and "two again and more" in changed
    assert None not in _talk(service, {"has": "of a stranger"})["turns"] and None not in _talk(service, {"has": ["0", None]})["turns"]


def test_held_back_rows_with_line_separators_of_unicode_are_asked_whole(workspace: Workspace) -> None:
    run = write_run(workspace, end="done")
    run.data.mkdir(exist_ok=True)
    turns = (Message("user", "one\u2028two"), Message("assistant", "three\x85four\u2029five"))
    (run.data / "eval.jsonl").write_text((Conversation(turns).as_line() + "\n") * 3, encoding="utf-8")
    assert [row[:3] for row in held_back_rows(workspace, run.id, most=2)] == [("one\u2028two", "three\x85four\u2029five", "")] * 2


def test_held_back_rows_bring_their_tools_and_no_answer_that_nobody_shall_learn(workspace: Workspace) -> None:
    run = write_run(workspace, end="done")
    run.data.mkdir(exist_ok=True)
    call = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    tools = ({"function": {"name": "clock"}},)
    calls = Conversation((Message("user", "Late?"), Message("assistant", "", tool_calls=(call,))), tools)
    wrong = Conversation((Message("user", "Late?"), Message("assistant", "Never.", is_learned=False)))
    (run.data / "eval.jsonl").write_text(f"{calls.as_line()}\n{wrong.as_line()}\n", encoding="utf-8")
    first, second = held_back_rows(workspace, run.id)
    assert json.loads(first.answer) == call["function"] and first.tools == tools
    assert second == ("Late?", "", "", ()) and calls.messages[1].in_words() == first.answer


def test_a_held_back_row_is_asked_with_its_tools_and_kept_with_them(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(workspace, end="done")
    run.data.mkdir(exist_ok=True)
    tools = ({"type": "function", "function": {"name": "clock"}},)
    row = Conversation((Message("user", "Late?"), Message("assistant", "Yes.")), tools)
    (run.data / "eval.jsonl").write_text(row.as_line() + "\n", encoding="utf-8")
    asked: list[object] = []

    def stream(*given: object) -> list[SimpleNamespace]:
        asked.append(given[3])
        return [SimpleNamespace(side="adapter", text="Aye.", num_tokens=1, tokens_per_s=1.0, first_token_s=0.1, stopped_by="end")]

    monkeypatch.setattr(Service, "chat", SimpleNamespace(stream=stream))
    monkeypatch.setattr(ChatDesk, "_work", lambda desk: None)
    service = Service(workspace)
    choose_run(service, run.id)
    service.desk.ask_unseen_row()
    service.desk._answer()
    assert asked == [tools] and "may call clock" in _talk(service, {})["context"]
    service.desk.keep(0, "adapter")
    assert json.loads(kept_rows(workspace).read_text(encoding="utf-8"))["tools"] == list(tools)
    service.desk.record.save()
    again = Service(workspace).desk
    assert again.record.history.tools == tools
    again.undo()
    assert again.record.history.tools == ()


def test_a_chat_begins_with_the_system_prompt_that_the_run_learned_after(workspace: Workspace) -> None:
    def learned(systems: list[str]) -> str:
        run = write_run(workspace, end="done")
        run.data.mkdir(exist_ok=True)
        rows = [Conversation((Message("system", system), Message("user", "Hi"), Message("assistant", "Yo"))) for system in systems]
        (run.data / "train.jsonl").write_text("".join(row.as_line() + "\n" for row in rows), encoding="utf-8")
        return run.id

    shop, mixed = learned(["You sell tea.", "You sell tea."]), learned(["Be brief.", "Be kind."])
    service = Service(workspace)
    history = service.desk.record.history
    choose_run(service, shop)
    drawn = _talk(service, {})
    assert drawn["system"] == "You sell tea." and "System prompt" in drawn["note"]
    choose_run(service, mixed)
    assert history.system == "" and not service.desk.note
    choose_run(service, shop)
    _talk(service, {"do": "system", "text": "You sell coffee."})
    choose_run(service, mixed)
    assert history.system == "You sell coffee."
    # Who goes on with a conversation goes on with it as it was.
    choose_run(service, shop)
    history.system = ""
    history.ask("Hi?")
    history.add("adapter", "Yo.")
    choose_run(service, shop)
    assert history.system == ""


def test_a_question_that_was_taken_is_asked_once_and_outlives_the_app(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatDesk, "_work", lambda desk: None)
    service, asked = Service(workspace), {"do": "say", "text": "Where am I?", "key": "1-0.5"}
    # The page never saw what the app said to the first, and the app was killed while it answered.
    for _ in range(2):
        drawn = _talk(service, asked)
        assert drawn["heard"] == ["1-0.5"] and not drawn["failure"] and len(drawn["turns"]) == 1
    drawn = _talk(Service(workspace), {})
    assert drawn["heard"] == ["1-0.5"] and not drawn["busy"]
    (turn,) = drawn["turns"]
    assert "Where am I?" in turn and "Not answered yet." in turn and "Try again" in turn


def test_a_run_that_is_deleted_is_talked_to_no_more(workspace: Workspace) -> None:
    service = Service(workspace)
    write_run(workspace, values={"output.name": "A"}, end="done")
    deleted = write_run(workspace, values={"output.name": "B"}, end="done")
    newest = write_run(workspace, values={"output.name": "C"}, end="done")
    choose_run(service, deleted.id)
    assert looked(service)[0] == f"run|{deleted.id}|"
    freed: list[bool] = []
    service.card.hold("chat", deleted.id, release=lambda: freed.append(True))
    perform(cast(Page, SimpleNamespace(service=service)), Action("delete", deleted.id, "", False, {}))
    assert freed == [True] and not service.desk.is_chosen
    drawn = _talk(service, {})
    assert drawn["who"] == f"run|{newest.id}|" and deleted.id not in str(drawn["targets"])
    assert "was deleted" in drawn["note"]  # another page, on which nobody pressed anything, sees who answers change
    assert not _talk(service, {"do": "choose", "key": f"run|{newest.id}|"})["note"]


def test_pages_ask_anew_when_a_run_is_renamed(workspace: Workspace) -> None:
    service, run = Service(workspace), write_run(workspace, values={"output.name": "A"}, end="done")
    before = _runs_version(service)
    perform(cast(Page, SimpleNamespace(service=service)), Action("rename", run.id, "Pirate", False, {}))
    service.run_lists.forget()
    assert _runs_version(service) != before and "Pirate" in str(_talk(service, {})["targets"])


def test_a_model_that_is_deleted_is_talked_to_no_more(workspace: Workspace) -> None:
    service, folder = Service(workspace), write_model(workspace.models / "merged")
    _talk(service, {"do": "choose", "key": f"model|{folder}|"})
    assert looked(service)[0] == f"model|{folder}|"
    _delete(service, str(folder))
    assert looked(service)[0].startswith("model|builtin:")
    assert _talk(service, {})["note"].startswith("The model that was talked to here was deleted")
    run = write_run(workspace, end="done")
    choose_run(service, run.id)
    write_model(folder)
    _delete(service, str(folder))
    assert looked(service)[0] == f"run|{run.id}|"


def test_a_model_is_not_deleted_under_what_reads_it(workspace: Workspace) -> None:
    service, folder, is_over = Service(workspace), write_model(workspace.models / "merged"), threading.Event()
    run = write_run(workspace, values={"model.id": str(folder), "output.name": "Pirate"}, end="done")
    working = service.background("export").start(f"{run.id}|merged-original", lambda on_progress, is_cancelled: is_over.wait(9))
    with pytest.raises(ModelError, match=r"The model is in use\. It is the base of Pirate, and the export"):
        _delete(service, str(folder))
    is_over.set()
    working.join()
    _delete(service, str(folder))
    assert not folder.exists()


def test_a_run_whose_folder_is_gone_breaks_no_drawing_and_its_remedy_fits_the_page(workspace: Workspace) -> None:
    service = Service(workspace)
    run = write_run(workspace, end="done")
    choose_run(service, run.id)
    looked(service)
    shutil.move(run.path, workspace.trash / run.id)
    # The list of runs is a moment old: it still has the run.
    drawn = _talk(service, {})
    assert drawn["who"].startswith("model|builtin:") and "was deleted" in drawn["note"]
    failure = _talk(service, {"do": "choose", "key": f"run|{run.id}|"})["failure"]
    assert "It may have been deleted" in failure and "the Runs tab lists them" in failure


def test_a_double_click_keeps_one_row_and_a_correction_another(workspace: Workspace) -> None:
    desk = Service(workspace).desk
    desk.record.history.ask("Hello")
    desk.record.history.add("base", "Ahoy")
    desk.record.notes.append(TurnNotes())
    for text in ("", "", "Ahoy, matey"):
        desk.keep(0, "base", text)
    rows = kept_rows(workspace).read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["messages"][-1]["content"] for row in rows] == ["Ahoy", "Ahoy, matey"]


def test_two_pages_that_send_in_one_moment_ask_one_after_the_other(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Service(workspace).desk
    begin, begun = desk._begin, []

    def slowly() -> None:
        time.sleep(0.1)
        begin()

    monkeypatch.setattr(desk, "_work", lambda: begun.append(len(desk.record.history.turns)))
    monkeypatch.setattr(desk, "_begin", slowly)
    with ThreadPoolExecutor(2) as pages:
        sent = [pages.submit(desk.say, text) for text in ("one", "two")]
    errors = [found.exception() for found in sent]
    assert [str(error)[:26] for error in errors if error] == ["An answer is being given. "] and begun == [1]


def test_a_sampling_that_cannot_be_is_refused_as_it_is_typed(workspace: Workspace) -> None:
    service = Service(workspace)
    for name, value, word in (("seed", "9" * 30, "seed"), ("max_tokens", "1e30", "longest answer"), ("max_tokens", "0", "longest answer")):
        assert f"The {word} cannot be" in _talk(service, {"do": "sampling", "values": {name: value}})["failure"]
        # Sent to every page: Gradio's JSON has no larger numbers, and a page that is sent none says that the app is lost.
        orjson.dumps(_talk(service, {}))
    assert _talk(service, {"do": "sampling", "values": {"seed": str(2**62)}})["sampling"]["seed"] == str(2**62)


def test_half_an_emoji_is_asked_without_its_half_and_leaves_the_pages_alive(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatDesk, "_work", lambda desk: None)
    service = Service(workspace)
    drawn = _talk(service, {"do": "say", "text": "cut \ud83d"})
    orjson.dumps(drawn)
    assert not drawn["failure"] and "cut \ufffd" in drawn["turns"][0]
    assert "cut \ufffd" in _talk(Service(workspace), {})["turns"][0]


def asked_twice(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[Service, list[str]]:
    """A conversation of two turns that are answered, and what pages call them by."""
    monkeypatch.setattr(ChatDesk, "_work", lambda desk: setattr(desk, "busy", ""))
    service = Service(workspace)
    for text in ("one", "two"):
        service.desk.say(text)
        service.desk.record.history.add("base", "Ahoy")
        service.desk.busy = ""
    return service, [notes.key for notes in service.desk.record.notes]


def questions(service: Service) -> list[str]:
    return [turn.question for turn in service.desk.record.history.turns]


def test_only_a_conversation_of_rows_is_forgotten_for_another_row_without_a_question(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = asked_twice(workspace, monkeypatch)
    assert _talk(service, {})["own"]
    service.desk.clear()
    service.desk.say("one", reference="Ahoy")
    assert not _talk(service, {})["own"]


def test_a_double_click_takes_one_question_back(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    service, (_, second) = asked_twice(workspace, monkeypatch)
    assert _talk(service, {"do": "undo", "of": second})["draft"] == "two"
    again = _talk(service, {"do": "undo", "of": second})
    assert "draft" not in again and not again["failure"] and questions(service) == ["one"]


def test_what_a_page_does_to_a_turn_is_never_done_to_the_one_that_took_its_place(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, (first, second) = asked_twice(workspace, monkeypatch)
    service.desk.undo()
    service.desk.say("three")  # on another page, while a dialog about the second is open on this one
    service.desk.record.history.add("base", "Aye")
    service.desk.busy = ""
    for deed in ("edit", "retry", "keep", "correct"):
        failure = _talk(service, {"do": deed, "of": second, "side": "base", "text": "typed"})["failure"]
        assert "went on in another place" in failure, deed
    assert "went on in another place" in _talk(service, {"do": "undo", "of": first})["failure"]
    assert questions(service) == ["one", "three"] and not kept_rows(workspace).exists()


def test_half_an_answer_is_not_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    service, (_, second) = asked_twice(workspace, monkeypatch)
    service.desk.busy = "answering"  # it was asked again on another page
    assert "An answer is being given" in _talk(service, {"do": "keep", "of": second, "side": "base"})["failure"]
    assert not _talk(service, {"do": "correct", "of": second, "side": "base", "text": "Ahoy, matey"})["failure"]
    assert len(kept_rows(workspace).read_text(encoding="utf-8").splitlines()) == 1


def test_an_app_that_is_started_again_knows_its_settings_and_what_was_kept(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    service, (first, _) = asked_twice(workspace, monkeypatch)
    _talk(service, {"do": "keep", "of": first, "side": "base"})
    _talk(service, {"do": "system", "text": "You are a pirate."})
    _talk(service, {"do": "sampling", "values": {"temperature": "0", "max_tokens": "64", "seed": ""}})
    drawn = _talk(Service(workspace), {})
    assert drawn["system"] == "You are a pirate." and drawn["sampling"] == {"temperature": 0.0, "top_p": 0.9, "max_tokens": 64, "seed": ""}
    # Offered again, the same row would be kept twice.
    assert "✓ kept as a row" in drawn["turns"][0] and "✓ kept as a row" not in drawn["turns"][1]
    spoilt = '{"turns": [{"question": "q", "answers": {}}], "kept": [3], "heard": 1, "sampling": {"seed": "x"}}'
    (workspace.cache / "chat.json").write_text(spoilt, encoding="utf-8")
    assert len(_talk(Service(workspace), {})["turns"]) == 1
