"""From files to conversations: kinds of files, slices, weights, cache, cancel, limits, fixes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import read_json
from qlora_ui.base.progress import Cancelled
from qlora_ui.cli import main
from qlora_ui.data import parse
from qlora_ui.data.checks import TextChecks, order_problems
from qlora_ui.data.collect import keep_row
from qlora_ui.data.fixes import apply_fix, write_version
from qlora_ui.data.languages import Languages
from qlora_ui.data.load import inspect, load_anyway, load_conversations, peek
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.data.similar import Similar
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.new_data import kept_source
from qlora_ui.ui.views.data_report import drops

ROWS = [{"question": f"What is {n} and {n}, “please”?", "answer": f"It is {2 * n},\nof course."} for n in range(1, 21)]


def write_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


KINDS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 2, "data": ROWS}), encoding="utf-8"),
    "viewer.json": lambda path: path.write_text(
        json.dumps({"rows": [{"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(ROWS)]}), encoding="utf-8"
    ),
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "spread.json": lambda path: path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS), encoding="utf-8"),
    "rows.csv": write_csv,
    "semicolon.csv": lambda path: write_csv(path, ";"),
    "excel.csv": lambda path: write_csv(path, ";", "utf-8-sig"),
    "old.csv": lambda path: write_csv(path, ";", "cp1252"),
    "wide.csv": lambda path: write_csv(path, "\t", "utf-16"),
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.parquet": write_parquet,
    "renamed.txt": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_conversations(name: str, tmp_path: Path, workspace: Workspace) -> None:
    KINDS[name](tmp_path / name)
    loaded = load_conversations(DataSection(sources=(str(tmp_path / name),)), workspace)
    assert [(c.messages[0].content, c.messages[1].content) for c in loaded.conversations] == [(r["question"], r["answer"]) for r in ROWS]
    assert loaded.report.format == "columns" and loaded.report.sources[0].mapping == {"user": "question", "assistant": "answer"}


def chats(path: Path, count: int, word: str = "row") -> str:
    lines = [
        {"messages": [{"role": "user", "content": f"{word} {n}?"}, {"role": "assistant", "content": f"The {word} number {n} it is, sir."}]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_slices_and_weights(tmp_path: Path, workspace: Workspace) -> None:
    one, two = chats(tmp_path / "one.jsonl", 40, "one"), chats(tmp_path / "two.jsonl", 10, "two")
    sources = (DataSource(id=one, rows="11-20", weight=0.5), DataSource(id=two, rows="50 %", weight=2), DataSource(id=two, rows="first 2"))
    loaded = load_conversations(DataSection(sources=sources), workspace)
    rows = [(conversation.source, conversation.row) for conversation in loaded.conversations]
    assert len(rows) == 5 + 10 + 2 == loaded.report.num_rows
    assert all(source == "one.jsonl" and 11 <= row <= 20 for source, row in rows[:5]) and len(set(rows[:5])) == 5
    assert rows[5:15] == [("two.jsonl", row) for row in (1, 2, 3, 4, 5)] * 2
    again = load_conversations(DataSection(sources=sources), workspace)
    assert [(c.source, c.row) for c in again.conversations] == rows
    assert again.report.content_hash == loaded.report.content_hash
    other = load_conversations(DataSection(sources=sources[1:]), workspace)
    assert other.report.content_hash != loaded.report.content_hash


def test_what_cannot_be_read_after_the_chosen_rows_stops_nothing(tmp_path: Path, workspace: Workspace) -> None:
    path = Path(chats(tmp_path / "rows.jsonl", 20, "rows"))
    path.write_text(path.read_text(encoding="utf-8") + "{\n" + Path(chats(tmp_path / "more.jsonl", 10, "more")).read_text(encoding="utf-8"))
    torn = tmp_path / "torn.json"
    torn.write_text("[" + ",".join(json.dumps(row) for row in ROWS) + ", {", encoding="utf-8")

    def verdict(path: Path, rows: str) -> str:
        return inspect(DataSection(sources=(DataSource(id=str(path), rows=rows),)), workspace).verdict

    assert [verdict(path, rows) != "not-trainable" for rows in ("first 20", "50 %", "11-20", "", "21-25", "first 21", "100 %")] == [
        True
    ] * 3 + [False] * 4
    # A share of what was read is none of the file, and more than was read is not what was chosen.
    assert [verdict(torn, rows) != "not-trainable" for rows in ("first 10", "5-19", "50 %", "first 20", "10-50")] == [True] * 2 + [
        False
    ] * 3


def test_a_file_is_read_once_and_anew_when_it_changes(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSection(sources=(chats(tmp_path / "a.jsonl", 12),))
    first = inspect(data, workspace)
    with monkeypatch.context() as patch:
        patch.setattr(parse, "_Child", None)
        assert inspect(data, workspace) == first
    chats(tmp_path / "a.jsonl", 13)
    assert inspect(data, workspace).num_rows == 13


def test_rows_are_never_kept_under_the_hash_of_what_the_file_was_before(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, old, new = tmp_path / "rows.jsonl", '{"prompt": "q", "completion": "old"}\n', '{"prompt": "q", "completion": "another"}\n'
    hashed = parse._hash

    def written_meanwhile(*given: Any) -> str:
        digest = hashed(*given)
        path.write_text(new, encoding="utf-8")
        return digest

    path.write_text(old, encoding="utf-8")
    data = DataSection(sources=(DataSource(id=str(path)),))
    with monkeypatch.context() as patched:
        patched.setattr(parse, "_hash", written_meanwhile)
        with pytest.raises(DataError, match="changed while it was read"):
            load_anyway(data, workspace)
    path.write_text(old, encoding="utf-8")
    assert load_anyway(data, workspace).conversations[0].messages[1].content == "old"


def test_all_sources_that_fail_are_told_at_once(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(DataError) as refused:
        inspect(DataSection(sources=("builtin:nothing", str(tmp_path / "absent.jsonl"))), workspace)
    assert [problem.code for problem in refused.value.problems] == ["DATA-MISSING", "DATA-MISSING"]


def test_cancel_leaves_nothing_behind(tmp_path: Path, workspace: Workspace) -> None:
    path = chats(tmp_path / "a.jsonl", 20_000)
    calls = iter(range(1000))
    with pytest.raises(Cancelled):
        inspect(DataSection(sources=(path,)), workspace, is_cancelled=lambda: next(calls) > 3)
    assert list((workspace.cache / "data").iterdir()) == []


def test_too_much_memory_or_time_ends_the_reader_and_not_the_app(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSection(sources=(chats(tmp_path / "a.jsonl", 200),))
    with monkeypatch.context() as patch:
        patch.setattr(parse, "MEMORY_BYTES", 1 << 20)
        with pytest.raises(DataError, match="memory") as refused:
            inspect(data, workspace)
    assert refused.value.code == "DATA-LIMIT"
    with monkeypatch.context() as patch:
        patch.setattr(parse, "_BASE_S", -1.0)
        patch.setattr(parse, "_SLOWEST_BYTES_PER_S", 1e12)
        with pytest.raises(DataError, match="too long"):
            inspect(data, workspace)
    assert inspect(data, workspace).num_rows == 200


def test_fixes_write_new_versions_and_never_touch_the_file(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "mine.jsonl"
    chats(path, 12)
    broken = path.read_text(encoding="utf-8") + path.read_text(encoding="utf-8").splitlines()[0] + "\n{broken\n"
    broken += json.dumps({"messages": [{"role": "user", "content": "Mail a@b.example?"}, {"role": "assistant", "content": "No."}]}) + "\n"
    path.write_text(broken, encoding="utf-8")
    data = DataSection(sources=(DataSource(id=str(path), weight=2),))
    report = inspect(data, workspace)
    assert report.verdict == "not-trainable"
    by_code = {finding.code: finding for finding in report.findings}
    assert by_code["DATA-JSON"].rows == (14,) and by_code["DATA-DUPLICATE"].rows == (13,) and by_code["DATA-EMAIL"].rows == (15,)
    with pytest.raises(DataError) as refused:
        load_conversations(data, workspace)
    assert refused.value.code == "DATA-JSON"

    action = by_code["DATA-DUPLICATE"].fix_action
    assert action is not None
    values = apply_fix(data, workspace, action)
    source = values["data.sources"][0]
    assert source.weight == 2 and Path(source.id).parent == workspace.datasets and Path(source.id).name == "mine-v2.jsonl"
    fixed = data.model_copy(update={"sources": values["data.sources"]})
    assert {finding.code for finding in inspect(fixed, workspace).findings} == {"DATA-EMAIL"}
    again = apply_fix(fixed, workspace, by_code["DATA-EMAIL"].fix_action or {})
    assert Path(again["data.sources"][0].id).name == "mine-v3.jsonl"
    masked = load_anyway(data.model_copy(update={"sources": again["data.sources"]}), workspace)
    assert masked.conversations[12].messages[0].content == "Mail <email>?"
    # All findings at once are one new version, and not one each.
    every = [{**(found.fix_action or {}), "source": found.source} for found in drops(report)]
    assert [found.code for found in drops(report)] == ["DATA-JSON", "DATA-DUPLICATE"]
    (at_once,) = apply_fix(data, workspace, {"action": "drop-all", "of": every})["data.sources"]
    assert {finding.code for finding in inspect(data.model_copy(update={"sources": (at_once,)}), workspace).findings} == {"DATA-EMAIL"}
    assert read_json(Path(at_once.id).with_suffix(".json")) == {"from": "mine.jsonl", "fix": "DATA-JSON, DATA-DUPLICATE", "rows": 13}
    assert path.read_text(encoding="utf-8") == broken
    assert apply_fix(data, workspace, {"action": "set", "path": "data.max_length", "value": 64}) == {"data.max_length": 64}


def test_a_new_version_that_cannot_be_written_whole_is_not_there(workspace: Workspace) -> None:
    rows = [Conversation((Message("user", "a"), Message("assistant", word))) for word in ("b", "fills the disk")]

    def change(row: Conversation) -> Conversation:
        if row.messages[1].content != "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return row

    with pytest.raises(OSError, match="No space"):
        write_version(rows, workspace, "mine.jsonl", "DATA-EMAIL", change)
    assert list(workspace.datasets.iterdir()) == []
    assert write_version(rows, workspace, "mine.jsonl", "DATA-EMAIL").name == "mine-v2.jsonl"


def test_no_new_version_of_a_file_that_was_not_read_to_its_end(
    tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(ROWS)[:-1] + ', {"question": "?",}, {"question": "?", "answer": "!"}]', encoding="utf-8")
    data = DataSection(sources=(str(path),))
    with pytest.raises(DataError, match="Nothing after it was read, only the 20 rows before it were"):
        apply_fix(data, workspace, {"action": "drop", "code": "DATA-DUPLICATE"})
    words = ("data", "convert", str(path), "--out", str(tmp_path / "out.jsonl"))
    for more in ((), ("--skip-bad",)):
        code, answer = run_cli(capsys, workspace, *words, *more)
        assert code == 2 and "Nothing after it was read" in answer["error"]["problems"][0]["what"]
    assert not (tmp_path / "out.jsonl").exists()
    assert inspect(data, workspace).verdict == "not-trainable"


def test_secrets_and_control_tokens_are_spotted(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "s.jsonl"
    texts = ["fine"] * 10 + [
        "my key is hf_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----",
        "[INST] hi [/INST]",
        "a <b> c",
        "x@y",
        "sk-short",
    ]
    rows = [{"prompt": f"{n}?", "completion": f"{text} {n}"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    findings = {finding.code: finding for finding in inspect(DataSection(sources=(str(path),)), workspace).findings}
    assert findings["DATA-SECRET"].rows == (11, 12) and "Hugging Face token" in findings["DATA-SECRET"].what
    assert findings["DATA-SPECIAL"].rows == (13,)
    assert "DATA-EMAIL" not in findings


def test_secrets_and_addresses_are_found_and_masked_wherever_they_stand(tmp_path: Path, workspace: Workspace) -> None:
    key, address = "hf_" + "a1B2" * 9, "ann@example.org"
    ask: dict[str, Any] = {"role": "user", "content": "Go."}
    call = {"type": "function", "function": {"name": "send", "arguments": {"to": [f"Ann\n{address}"], "key": key}}}
    rows = [
        [{"role": "system", "content": f"{key} {address}"}, ask, {"role": "assistant", "content": "Yes."}],
        [ask, {"role": "assistant", "content": "Yes.", "reasoning_content": f"{key} {address}"}],
        [ask, {"role": "assistant", "content": "", "tool_calls": [call]}],
        [ask, {"role": "assistant", "content": "No."}],
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    data = DataSection(sources=(str(path),))
    findings = {finding.code: finding for finding in inspect(data, workspace).findings}
    assert findings["DATA-SECRET"].rows == findings["DATA-EMAIL"].rows == (1, 2, 3)
    masked = data.model_copy(update={"sources": apply_fix(data, workspace, findings["DATA-EMAIL"].fix_action or {})["data.sources"]})
    assert "DATA-EMAIL" not in {finding.code for finding in inspect(masked, workspace).findings}
    calls = load_conversations(masked, workspace).conversations[2].messages[-1].tool_calls
    assert calls[0]["function"]["arguments"] == {"to": ["Ann\n<email>"], "key": key}


def test_order_of_speakers() -> None:
    assert order_problems(("system", "user", "assistant", "tool", "assistant")) == ()
    assert order_problems(("user", "assistant", "tool", "tool", "assistant")) == ()
    assert order_problems(("assistant", "user", "assistant")) == ("starts",)
    assert order_problems(("user", "user", "assistant")) == ("twice",)
    assert order_problems(("user", "system", "assistant")) == ("late-system",)
    assert order_problems(("user", "tool", "assistant")) == ("orphan-tool",)
    assert order_problems(("user", "assistant", "user")) == ("no-answer-last",)


def test_near_duplicates() -> None:
    base = "The harbour master counts the boats that come in with the evening tide and writes each of them down in his large grey book."
    others = [
        f"Row {n} speaks of {n * 7} lanterns, {n * n} bridges and the {n}th winter of a town by the sea, and nothing else."
        for n in range(300)
    ]
    similar = Similar()
    more = [*others[150:], base.upper().replace("BOOK", "LEDGER"), base.replace(",", ";") + " Yes.", "too short", ""]
    similar.add([*others[:150], base], np.zeros(151, dtype=np.uint64))
    similar.add(more, np.zeros(len(more), dtype=np.uint64))
    assert similar.near_duplicates().tolist() == [301, 302]
    similar.add([base + " Well."] * 2, np.full(2, 7, dtype=np.uint64))
    assert similar.near_duplicates().tolist() == [301, 302, 306]  # Under another system prompt it is another row.


def doubles(*normals: dict[str, Any]) -> tuple[list[int], list[int]]:
    checks = TextChecks()
    for number, normal in enumerate(normals, 1):
        checks.add(number, normal, json.dumps(normal).encode())
    checks.finish()
    checks._doubles(np.arange(1, len(normals) + 1))
    return checks.flags["duplicate"].tolist(), checks.flags["near"].tolist()


def test_rows_that_differ_in_system_prompt_tools_or_calls_are_no_doubles() -> None:
    said = [
        {"role": "user", "content": "Please turn on the light in the room that I told you of before."},
        {"role": "assistant", "content": "Yes."},
    ]

    def call(room: str) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "light", "arguments": {"where": room}}}],
        }

    tool = {"type": "function", "function": {"name": "light"}}
    assert doubles({"messages": said}, {"messages": said}) == ([2], [])
    prompts = [{"role": "system", "content": f"You may light room {n} only."} for n in range(3)]
    assert doubles(*({"messages": [prompt, *said]} for prompt in prompts)) == ([], [])
    assert doubles({"messages": said}, {"messages": said, "tools": [tool]}) == ([], [])
    rooms = "the long kitchen beside the stairs with two lamps", "a small attic under the northern roof that nobody uses"
    assert doubles(*({"messages": [said[0], call(room)]} for room in rooms)) == ([], [])
    assert doubles(*({"messages": [{"role": "user", "content": "Light!"}, call(room)]} for room in "abc")) == ([], [])
    assert doubles({"messages": [prompts[0], *said]}, {"messages": [prompts[0], said[0], {"role": "assistant", "content": "Yes!"}]}) == (
        [],
        [2],
    )


def test_scripts_and_languages() -> None:
    languages = Languages()
    languages.add(["The cat is on the mat and it is not the dog"] * 6 + ["Der Hund ist nicht auf dem Tisch und das ist gut"] * 3)
    languages.add(["это не то что он и она"] * 2 + ["これは日本語です"] * 1)
    assert list(languages.languages()) == ["English", "German", "Russian", "Japanese"]
    assert set(languages.scripts()) == {"Latin", "Cyrillic", "Kana", "Han"} and languages.scripts()["Latin"] > 0.7


def test_short_answers_of_a_shop_have_a_language() -> None:
    languages = Languages()
    answers = ["Ja, für 9,50 €; es dauert etwa fünf Tage, wir rufen Sie an.", "Nein, sonntags haben wir leider geschlossen.",
               "Die meisten Hemden führen wir bis Größe XXL.", "Kann ich Ware bei Ihnen zurückgeben?"]  # fmt: skip
    languages.add(answers)
    assert languages.languages() == {"German": 1.0}


def run_cli(capsys: pytest.CaptureFixture[str], workspace: Workspace, *words: str) -> tuple[int, Any]:
    code = main([*words, "--json", "--workspace", str(workspace.root)])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    return code, json.loads(out[0])


def test_lint_on_the_command_line(tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run_cli(capsys, workspace, "lint", chats(tmp_path / "a.jsonl", 12))
    assert code == 0 and (report["format"], report["rows"], report["verdict"], report["tokens"]) == ("messages", 12, "ready", {})
    (tmp_path / "bad.jsonl").write_text("{'a': 1}\n", encoding="utf-8")
    code, answer = run_cli(capsys, workspace, "lint", str(tmp_path / "bad.jsonl"))
    assert code == 2 and answer["error"]["problems"][0]["code"] == "DATA-JSON" and answer["error"]["problems"][0]["fix"]
    code, answer = run_cli(capsys, workspace, "lint", str(tmp_path / "bad.jsonl"), "--format", "banana", "--map", "x")
    assert code == 2


def test_a_finding_belongs_to_its_file_whatever_the_file_is_called(tmp_path: Path, workspace: Workspace) -> None:
    paths = [tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"]
    for path in paths:
        path.parent.mkdir()
        rows = [{"prompt": f"{path.parent.name} {n % 11}", "completion": "Yes."} for n in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSection(sources=tuple(map(str, paths)))
    loaded = load_anyway(data, workspace)
    first, second = (finding for finding in loaded.report.findings if finding.code == "DATA-DUPLICATE")
    assert (first.source, second.source) == ("a/rows.jsonl", "b/rows.jsonl")
    assert loaded.conversations.position_of(second.rows[0], second.source) == 23
    fixed = apply_fix(data, workspace, {**(second.fix_action or {}), "source": second.source})["data.sources"]
    assert [len(load_anyway(DataSection(sources=(source,)), workspace).conversations) for source in fixed] == [12, 11]
    renamed = paths[0].rename(tmp_path / "renamed.jsonl")
    again = load_anyway(DataSection(sources=(str(renamed),)), workspace)
    (finding,) = again.report.findings
    assert again.conversations.position_of(finding.rows[0], finding.source) == 11


def test_convert_on_the_command_line(tmp_path: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "u.csv", tmp_path / "out.jsonl"
    write_csv(source)
    code, answer = run_cli(capsys, workspace, "data", "convert", str(source), "--out", str(out))
    assert code == 0 and answer["rows"] == 20 and len(out.read_text(encoding="utf-8").splitlines()) == 20
    code, answer = run_cli(capsys, workspace, "data", "convert", str(source), "--out", str(out))
    assert code == 2 and answer["error"]["code"] == "DATA-EXISTS"
    wide = tmp_path / "wide.jsonl"
    wide.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-16")
    code, _ = run_cli(capsys, workspace, "data", "convert", str(wide), "--out", str(tmp_path / "w.jsonl"), "--encoding", "utf-16")
    assert code == 0 and list(workspace.temp.iterdir()) == []


def test_a_row_is_found_by_its_number_without_reading_the_others(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("a", ROWS), ("b", [{}, *ROWS])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = (DataSource(id=str(tmp_path / "a.jsonl"), rows="11-20"), DataSource(id=str(tmp_path / "b.jsonl"), weight=2))
    conversations = load_anyway(DataSection(sources=sources), workspace).conversations
    wanted = {(row.row, row.source): place for place, row in reversed(list(enumerate(conversations)))}
    monkeypatch.setattr(type(conversations), "__getitem__", None)
    for (row, source), place in wanted.items():
        assert conversations.position_of(row, source) == place
    assert conversations.position_of(2) == conversations.position_of(2, "b.jsonl") == 10
    assert conversations.position_of(2, "a.jsonl") is conversations.position_of(1, "b.jsonl") is conversations.position_of(99) is None


def test_a_first_look_for_mapping_columns(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("Question;Reply;Notes\nWhy?;Because.;" + "x" * 400 + "\n", encoding="utf-8")
    look = peek(DataSource(id=str(path)), workspace)
    assert look.columns == ("Question", "Reply", "Notes") and look.guess == {"user": "Question", "assistant": "Reply"}
    assert look.rows[0]["Question"] == "Why?" and len(look.rows[0]["Notes"]) == 301
    assert list(workspace.temp.iterdir()) == []
    path.write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError):
        peek(DataSource(id=str(path)), workspace)


def test_liked_chats_become_a_dataset_that_the_data_tab_offers(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="keep as a row"):
        kept_source(workspace)
    chat = [Message("user", "Hi\u2028"), Message("assistant", "Ahoy!\n  An indented line.")]
    keep_row(chat, workspace)
    keep_row(chat, workspace)
    path = Path(kept_source(workspace))
    # As an editor leaves it that ends no last line.
    path.write_bytes(path.read_bytes().rstrip())
    keep_row(chat, workspace)
    loaded = load_conversations(DataSection(sources=(str(path),)), workspace)
    assert [conversation.messages for conversation in loaded.conversations] == [tuple(chat)] * 3


def test_a_reader_that_ended_for_want_of_room_is_not_laid_to_the_file(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    child = parse._Child({"name": "rows.jsonl", "folder": str(workspace.temp)}, lambda what, share: None, lambda: False)
    child._complaints = io.BytesIO()
    assert "was ended by this file (code 120)" in str(child._died(120))
    monkeypatch.setattr(parse, "free_bytes", lambda folder: 0)
    assert "The disk is full." in str(child._died(120))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_refused_where_opening_it_would_wait_for_ever(workspace: Workspace, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="This is a pipe or a device"):
        inspect(DataSection(sources=(DataSource(id=str(tmp_path / "rows.jsonl")),)), workspace)


@pytest.mark.parametrize("damage", ["empty files", "zeros at the end", "a file is gone"])
def test_rows_that_a_power_cut_has_damaged_are_read_again(damage: str, tmp_path: Path, workspace: Workspace) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{number}", "completion": "c"}) + "\n" for number in range(3)), encoding="utf-8")
    data = DataSection(sources=(DataSource(id=str(file)),))
    first = load_conversations(data, workspace)
    (kept,) = workspace.rows_and_tokens[0].iterdir()
    for name in ("rows.jsonl", "offsets.bin", "numbers.bin"):
        size = (kept / name).stat().st_size
        os.truncate(kept / name, {"empty files": 0, "zeros at the end": size // 2}.get(damage, size))
        if damage == "zeros at the end":
            os.truncate(kept / name, size)
        elif damage == "a file is gone" and name == "numbers.bin":
            (kept / name).unlink()
    again = load_conversations(data, workspace)
    assert [row.as_dict() for row in again.conversations] == [row.as_dict() for row in first.conversations] and len(
        again.conversations
    ) == 3
