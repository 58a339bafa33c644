"""Files as other programs write them: lists inside texts, tables in odd encodings, trees, rated answers, names in capitals."""

# ruff: noqa: E501 (rows read better in one line)
from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.catalog.formats.format import RowProblem
from qlora_ui.data import child, json_rows, parquet_rows
from qlora_ui.data.child import parse
from qlora_ui.data.report import Finding, SourceReport
from qlora_ui.data.row_stream import Progress
from qlora_ui.data.rows import Conversation

NUM_ROWS = 30
Said = list[tuple[str, str]]


def q(n: int) -> str:
    return f"Which river runs through town {n}, Straße?"


def a(n: int) -> str:
    return f"The Elbe number {n}, which is long."


def pair(n: int) -> Said:
    return [("user", q(n)), ("assistant", a(n))]


def turns(n: int, role: str = "role", content: str = "content", user: str = "user", bot: str = "assistant") -> list[dict[str, Any]]:
    return [{role: user, content: q(n)}, {role: bot, content: a(n)}]


HELLO = [["Hi", "Hello"]]


def after_hello(n: int) -> Said:
    return [("user", "Hi"), ("assistant", "Hello"), *pair(n)]


def read(path: Path, folder: Path, form: str = "auto") -> tuple[SourceReport, list[Conversation]]:
    folder.mkdir(exist_ok=True)
    job = {
        "path": str(path),
        "source": "",
        "name": path.name,
        "format": form,
        "mapping": {},
        "folder": str(folder),
        "content_hash": "",
        "cpu_s": 60,
    }
    report = parse(job)
    lines = (folder / "rows.jsonl").read_bytes().splitlines()
    return report, [Conversation.from_dict(orjson.loads(line)) for line in lines]


def said(conversation: Conversation) -> Said:
    return [(message.role, message.content) for message in conversation.messages]


ROWS: dict[str, tuple[Callable[[int], Any], Callable[[int], Said]]] = {
    "conversations as JSON text": (lambda n: {"conversations": json.dumps(turns(n, "from", "value", "human", "gpt"))}, pair),
    "messages as JSON text": (lambda n: {"id": n, "messages": json.dumps(turns(n))}, pair),
    "messages as Python text": (lambda n: {"messages": repr(turns(n))}, pair),
    "messages as NumPy prints them": (lambda n: {"messages": repr(turns(n)).replace("}, {", "}\n {")}, pair),
    "human and gpt under role": (lambda n: {"messages": turns(n, user="human", bot="gpt")}, pair),
    "User and Bot in a dialog": (lambda n: {"dialog": turns(n, user="User", bot="Bot")}, pair),
    "contents with parts": (lambda n: {"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": [{"role": "user", "parts": [{"text": q(n)}]}, {"role": "model", "parts": [{"text": a(n)}]}]},
                            lambda n: [("system", "Be brief."), *pair(n)]),
    "chat_messages with sender": (lambda n: {"uuid": "x", "name": "t", "chat_messages": turns(n, "sender", "text", "human", "assistant")}, pair),
    "input_text parts": (lambda n: {"messages": [{"role": "user", "content": [{"type": "input_text", "text": q(n)}]}, {"role": "assistant", "content": [{"type": "output_text", "text": a(n)}]}]}, pair),
    "prompt, response, history": (lambda n: {"prompt": q(n), "response": a(n), "history": HELLO}, after_hello),
    "history as text": (lambda n: {"instruction": q(n), "input": "", "output": a(n), "history": json.dumps(HELLO)}, after_hello),
    "history as turns": (lambda n: {"instruction": q(n), "output": a(n), "history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, after_hello),
    "empty history as text": (lambda n: {"instruction": q(n), "output": a(n), "history": "[]"}, pair),
    "null cells": (lambda n: {"instruction": q(n), "input": None, "output": a(n), "system": None, "history": None}, pair),
    "Instruction, Input, Output": (lambda n: {"Instruction": q(n), "Input": "", "Output": a(n)}, pair),
    "Messages": (lambda n: {"Messages": turns(n)}, pair),
    "Context and Response": (lambda n: {"Context": q(n), "Response": a(n)}, pair),
    "q and a": (lambda n: {"q": q(n), "a": a(n)}, pair),
    "human and bot": (lambda n: {"human": q(n), "bot": a(n)}, pair),
    "dialogue and summary": (lambda n: {"id": str(n), "dialogue": q(n), "summary": a(n)}, pair),
    "article and highlights": (lambda n: {"article": q(n), "highlights": a(n), "id": str(n)}, pair),
    "text and summary": (lambda n: {"text": q(n), "summary": a(n), "title": "t"}, pair),
    "a number as output": (lambda n: {"instruction": q(n), "output": n}, lambda n: [("user", q(n)), ("assistant", str(n))]),
    "true and false": (lambda n: {"question": q(n), "answer": n % 2 == 0}, lambda n: [("user", q(n)), ("assistant", "true" if n % 2 == 0 else "false")]),
    "mixed types": (lambda n: {"question": q(n), "answer": a(n) if n % 3 else n}, lambda n: [("user", q(n)), ("assistant", a(n) if n % 3 else str(n))]),
    "data with two texts": (lambda n: {"id": str(n), "data": [q(n), a(n)]}, pair),
    "a bare list of turns a line": (turns, pair),
    "a bare pair a line": (lambda n: [q(n), a(n)], pair),
    "replies inside replies": (lambda n: {"message_tree_id": "x", "prompt": {"text": q(n), "role": "prompter", "replies": [{"text": "worse", "role": "assistant", "rank": 1, "replies": []}, {"text": a(n), "role": "assistant", "rank": 0, "replies": [{"text": "?", "role": "prompter", "replies": []}]}]}}, pair),
    "a chat service's export": (lambda n: {"title": "t", "current_node": "c", "mapping": {
        "r": {"message": None, "parent": None}, "b": {"message": {"author": {"role": "user"}, "content": {"parts": [q(n)]}}, "parent": "r"},
        "c": {"message": {"author": {"role": "assistant"}, "content": {"parts": [a(n)]}}, "parent": "b"}, "d": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["other branch"]}}, "parent": "b"}}}, pair),
}  # fmt: skip


def lines(rows: Iterable[Any], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_other_programs(name: str, tmp_path: Path) -> None:
    make, expected = ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(make(n) for n in range(NUM_ROWS)))
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == NUM_ROWS and report.num_rows == NUM_ROWS
    for n in (0, 1, NUM_ROWS - 1):
        assert said(conversations[n]) == expected(n)
    assert not any(finding.severity == "error" for finding in report.findings)


def table(header: Sequence[str] | None = ("question", "answer"), encoding: str = "utf-8", delimiter: str = ",", before: str = "") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    if header:
        writer.writerow(header)
    writer.writerows((q(n), a(n)) for n in range(NUM_ROWS))
    return (before + text.getvalue()).encode(encoding)


def quoted(make: Callable[[int], str]) -> bytes:
    return ("question,answer\n" + "".join(make(n) + "\n" for n in range(NUM_ROWS))).encode()


COLUMNS = {"question": [q(n) for n in range(NUM_ROWS)], "answer": [a(n) for n in range(NUM_ROWS)]}
NAMED = {str(n): {"question": q(n), "answer": a(n)} for n in range(NUM_ROWS)}
FILES: dict[str, tuple[str, bytes]] = {
    "byte order mark": ("t.csv", table(encoding="utf-8-sig")),
    "semicolon and mark": ("t.csv", table(encoding="utf-8-sig", delimiter=";")),
    "UTF-16": ("t.csv", table(encoding="utf-16")),
    "UTF-16 with tabs": ("t.tsv", table(encoding="utf-16", delimiter="\t")),
    "what Excel calls Unicode Text": ("t.txt", table(encoding="utf-16", delimiter="\t")),
    "UTF-16 without a mark": ("t.csv", table(encoding="utf-16-le")),
    "UTF-16 the other way round": ("t.csv", table(encoding="utf-16-be")),
    "Windows-1252": ("t.csv", table(encoding="cp1252", delimiter=";")),
    "bars": ("t.csv", table(delimiter="|")),
    "tabs in a .csv": ("t.csv", table(delimiter="\t")),
    "commas in a .tsv": ("t.tsv", table()),
    "a spreadsheet's sep line": ("t.csv", table(delimiter=";", before="sep=;\r\n")),
    "unnamed columns": ("t.csv", quoted(lambda n: f'"{q(n)}","{a(n)}",,').replace(b"answer\n", b"answer,,\n")),
    "a spreadsheet's empty rows": ("t.csv", table(delimiter=";", before=";\r\n").replace(b"\r\n", b"\r\n;\r\n ; \r\n")),
    "a title above the table": ("t.csv", table(delimiter=";", before="Questions of March;\r\n;\r\n")),
    "empty cells beside the table": ("t.csv", quoted(lambda n: f'"{q(n)}","{a(n)}",,')),
    "only carriage returns": ("t.csv", table().replace(b"\r\n", b"\r")),
    "table by column": ("t.json", json.dumps(COLUMNS).encode()),
    "pandas by column": ("t.json", json.dumps({name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()}).encode()),
    "pandas split": ("t.json", json.dumps({"columns": list(COLUMNS), "index": [*range(NUM_ROWS)], "data": list(zip(*COLUMNS.values(), strict=True))}).encode()),
    "rows by name": ("t.json", json.dumps(NAMED).encode()),
    "splits in one file": ("t.json", json.dumps({"train": list(NAMED.values()), "test": [NAMED["0"]]}).encode()),
    "a list on one line": ("t.jsonl", json.dumps(list(NAMED.values())).encode()),
    "conversations in a list": ("t.json", json.dumps([turns(n) for n in range(NUM_ROWS)]).encode()),
    "commas after lines": ("t.jsonl", lines(NAMED.values(), ",\n")),
    "Windows line ends": ("t.jsonl", lines(NAMED.values(), "\r\n")),
    "blank lines between": ("t.jsonl", lines(NAMED.values(), "\n\n")),
    "no commas between": ("t.json", ("[" + "\n".join(json.dumps(row) for row in NAMED.values()) + "]").encode()),
    "a list in a text file": ("t.txt", json.dumps(list(NAMED.values()), indent=1).encode()),
    "marked questions": ("t.txt", "\n\n".join(f"Question: {q(n)}\nAnswer: {a(n)}" for n in range(NUM_ROWS)).encode()),
    "blank lines before answers": ("t.txt", "\n\n\n".join(f"Q: {q(n)}\r\n\r\nA: {a(n)}" for n in range(NUM_ROWS)).encode()),
    "a text of Windows": ("t.txt", "\n\n".join(f"F: {q(n)}\nA: {a(n)}" for n in range(NUM_ROWS)).encode("cp1252")),
    "no suffix": ("rows", lines(NAMED.values())),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs(name: str, tmp_path: Path) -> None:
    file, content = FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    report, conversations = read(path, tmp_path / "out")
    assert [said(conversation) for conversation in conversations] == [pair(n) for n in range(NUM_ROWS)]
    assert not any(finding.severity == "error" for finding in report.findings)


def test_quotes_written_with_a_backslash(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(quoted(lambda n: f'"say \\"hi\\" {n}","a path C:\\\\x {n}"'))
    assert said(read(path, tmp_path / "out")[1][2]) == [("user", 'say "hi" 2'), ("assistant", "a path C:\\x 2")]
    path.write_bytes(quoted(lambda n: f'"a ""quote"" {n}","C:\\dir\\"'))
    assert said(read(path, tmp_path / "out")[1][2]) == [("user", 'a "quote" 2'), ("assistant", "C:\\dir\\")]


def test_parquet_with_structs_of_lists_maps_and_binary_text(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.array([[q(n), a(n)] for n in range(NUM_ROWS)])
    roles = pa.array([["user", "assistant"]] * NUM_ROWS)
    tables = (
        pa.table({"messages": [turns(n) for n in range(NUM_ROWS)], "meta": pa.array([[("k", "v")]] * NUM_ROWS, pa.map_(pa.string(), pa.string()))}),
        pa.table({"messages": pa.StructArray.from_arrays([roles, lists], ["role", "content"])}),
        pa.table({"question": pa.array([q(n).encode() for n in range(NUM_ROWS)]), "answer": pa.array([a(n) for n in range(NUM_ROWS)]).dictionary_encode()}),
        pa.table({"instruction": [q(n) for n in range(NUM_ROWS)], "input": pa.nulls(NUM_ROWS), "output": pa.array([a(n) for n in range(NUM_ROWS)], pa.large_string())}),
        pa.table({"messages": [json.dumps(turns(n)) for n in range(NUM_ROWS)]}),
    )  # fmt: skip
    for number, found in enumerate(tables):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(found, path)
        assert [said(row) for row in read(path, tmp_path / "out")[1]] == [pair(n) for n in range(NUM_ROWS)]


def test_rows_of_a_thousand_columns_are_read_quickly_and_a_doubled_one_is_found(tmp_path: Path) -> None:
    others = ", ".join(f'"column {n}": "{"x" * 200}"' for n in range(1000))
    lines = [f'{{"prompt": "{q(n)}", "completion": "{a(n)}", {others}}}' for n in range(NUM_ROWS)]
    lines[2] = lines[2][:-1] + ', "prompt": "again"}'
    path, began = tmp_path / "t.jsonl", time.process_time()
    path.write_text("\n".join(lines), encoding="utf-8")
    report, rows = read(path, tmp_path / "out")
    assert len(rows) == NUM_ROWS - 1 and "“prompt” twice" in report.findings[0].what
    # Searched for each name it took 0.3 s a row.
    assert time.process_time() - began < 0.1 * NUM_ROWS


def test_a_first_row_that_is_too_long_and_many_broken_ones_say_nothing_of_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_SAMPLE_BYTES", 1 << 10)
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1 << 10)
    path, good = tmp_path / "t.jsonl", "".join(f'{{"prompt": "{q(n)}", "completion": "{a(n)}"}}\n' for n in range(NUM_ROWS))
    path.write_text(f'{{"prompt": "q", "completion": "{"a" * 5000}"}}\n{good}', encoding="utf-8")
    report, rows = read(path, tmp_path / "out")
    assert len(rows) == NUM_ROWS and report.findings[0].fix_action == {"action": "drop", "code": "DATA-LIMIT"}
    path.write_text("no JSON\n" * 1001 + good, encoding="utf-8")
    with pytest.raises(DataError, match="None of the first 1,000 rows can be used"):
        read(path, tmp_path / "out")


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="“answer” is there twice"):
        read(tmp_path / "t.parquet", tmp_path / "out")


def test_binary_parquet_columns_are_text_however_long_or_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, answers = (
        tmp_path / "t.parquet",
        [f"An answer of more than sixty-four bytes, as answers in the real world are: {n}" for n in range(9)],
    )
    cells = [*(answer.encode() for answer in answers[:-1]), b"\xff" * 9]
    pq.write_table(pa.table({"question": [f"q {n}" for n in range(9)], "answer": pa.array(cells), "hash": pa.array([b"\xff\0"] * 9)}), path)
    report, rows = read(path, tmp_path / "out")
    assert [said(row)[1][1] for row in rows] == answers[:-1]
    assert [(found.code, found.count, found.rows) for found in report.findings if found.severity == "error"] == [("DATA-FIELD", 1, (9,))]


def test_a_prompt_that_all_rows_share_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(parquet_rows, "_DECODED_FREE", 1 << 20)
    path = tmp_path / "t.parquet"

    def refused(num_rows: int, system: str) -> str:
        prompts = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array([system])).cast(pa.string())
        pq.write_table(pa.table({"system": prompts, "question": ["q"] * num_rows, "answer": ["a"] * num_rows}), path, compression="zstd")
        try:
            return "" if read(path, tmp_path / "out")[0].num_rows == num_rows else "rows are missing"
        except DataError as error:
            return str(error)

    assert refused(200, "You are the assistant of a shop. " * 600) == ""  # 3.8 MiB out of 2 KiB
    assert "made to fill the memory" in refused(200, "a" * (300 << 10))
    monkeypatch.setattr(parquet_rows, "_DECODED_MOST", 2 << 20)
    assert "made to fill the memory" in refused(200, "You are the assistant of a shop. " * 600)


def test_single_messages_become_conversations_of_the_best_replies(tmp_path: Path) -> None:
    rows = []
    for n in range(NUM_ROWS):
        rows += [
            {"message_id": f"{n}q", "parent_id": None, "role": "prompter", "text": q(n), "rank": None},
            {"message_id": f"{n}b", "parent_id": f"{n}q", "role": "assistant", "text": "worse", "rank": 1},
            {"message_id": f"{n}a", "parent_id": f"{n}q", "role": "assistant", "text": a(n), "rank": 0},
            {"message_id": f"{n}c", "parent_id": f"{n}a", "role": "prompter", "text": "unanswered", "rank": None},
            {"message_id": f"{n}d", "parent_id": f"{n}q", "role": "assistant", "text": "gone", "rank": -1, "deleted": True},
        ]
    path = tmp_path / "oasst.jsonl"
    path.write_bytes(lines(rows))
    report, conversations = read(path, tmp_path / "out")
    assert [said(row) for row in conversations] == [pair(n) for n in range(NUM_ROWS)]
    notes = {finding.code: finding.what for finding in report.findings}
    assert f"{4 * NUM_ROWS} single messages were joined to {NUM_ROWS} conversations" in notes["DATA-THREADS"]


def test_rated_answers_need_a_word_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "kto.jsonl"
    path.write_bytes(lines({"prompt": q(n), "completion": a(n), "label": n % 2 == 0} for n in range(NUM_ROWS)))
    with pytest.raises(DataError, match="rated good or bad") as refused:
        read(path, tmp_path / "out")
    assert refused.value.code == "DATA-PREFERENCE"
    report, conversations = read(path, tmp_path / "out", "preference")
    assert [said(row) for row in conversations] == [pair(n) for n in range(0, NUM_ROWS, 2)]
    left_out = next(finding for finding in report.findings if finding.code == "DATA-REJECTED")
    assert (left_out.severity, left_out.count) == ("note", NUM_ROWS // 2)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_nan_is_an_empty_cell(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    nan, inf = float("nan"), float("inf")
    rows = [{"instruction": q(n), "input": nan, "output": a(n) if n else nan, "score": (nan, inf, -inf, n)[n % 4]} for n in range(NUM_ROWS)]
    path.write_text(json.dumps(rows), encoding="utf-8") if name == "t.json" else path.write_bytes(lines(rows))
    report, conversations = read(path, tmp_path / "out")
    assert [said(row) for row in conversations] == [pair(n) for n in range(1, NUM_ROWS)]
    found = found_by_code(report)
    assert "`output` is empty" in found["DATA-FIELD"].what and found["DATA-NAN"].severity == "note"


ANSWERS_IN_JSON: tuple[Callable[[int], str], ...] = (
    lambda n: json.dumps([{"name": "Ada", "age": n}]),
    lambda n: json.dumps([{"name": "get_weather", "arguments": {"city": f"town {n}"}}]),
    lambda n: json.dumps([["Ada", n], ["Ben", n]]),
    lambda n: json.dumps([{"role": "Treasurer", "content": f"pays {n}"}]),
    lambda n: ("[]", json.dumps([{"name": n}]), '{"a": 1}')[n % 3],
)


@pytest.mark.parametrize("empty", [[], None, "", [None], [{"bytes": None}]])
def test_a_column_for_pictures_that_is_empty_does_no_harm(empty: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows: list[dict[str, Any]] = [{"messages": turns(n), "images": empty} for n in range(NUM_ROWS)]
    path.write_bytes(lines(rows))
    report, conversations = read(path, tmp_path / "out")
    assert [said(row) for row in conversations] == [pair(n) for n in range(NUM_ROWS)]
    assert not any(finding.severity == "error" for finding in report.findings)
    rows[7]["images"] = ["a.png"]
    path.write_bytes(lines(rows))
    with pytest.raises(DataError, match="holds pictures or sound"):
        read(path, tmp_path / "out")


def test_a_picture_where_the_first_rows_have_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    monkeypatch.setattr(child, "SAMPLE_ROWS", 10)
    rows: list[dict[str, Any]] = [{"messages": turns(n), "images": []} for n in range(NUM_ROWS)]
    rows[20]["images"] = ["a.png"]
    path.write_bytes(lines(rows))
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == NUM_ROWS - 1 and found_by_code(report)["DATA-MEDIA"].rows == (21,)


def found_by_code(report: SourceReport) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


def test_after_a_bad_record_of_a_table_the_reading_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f'"{q(n)}","{a(n)}"' for n in range(NUM_ROWS)]
    rows[4] = f'"{q(4)} "quoted" text","{a(4)}"'
    rows[9], rows[10] = f'"{q(9)}', f'of two "lines",{a(9)}'
    path.write_text("\n".join(["question,answer", *rows]), encoding="utf-8")
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == NUM_ROWS - 3 and said(conversations[-1]) == pair(NUM_ROWS - 1)
    bad = found_by_code(report)["DATA-CSV"]
    assert bad.what.startswith("Row 5 line 6: text stands after a closing quote") and bad.rows == (5, 10) and bad.fix_action
    assert not report.unread


def test_a_quote_that_is_never_closed_is_told_where_it_opens_and_what_was_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{n},{a(n).replace(',', '')}" for n in range(NUM_ROWS)]
    rows[7] = '"' + rows[7]
    path.write_text("\n".join(["question,answer", *rows, *rows[:3]]), encoding="utf-8")
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == 7
    assert report.unread.startswith("Row 8 line 9: a double quote is opened and never closed. Nothing after it was read, only the 7 rows")
    assert found_by_code(report)["DATA-UNREAD"].what == report.unread
    assert not any(finding.fix_action for finding in report.findings)  # A new version would lack the rest.


def test_a_record_with_too_many_fields_is_named_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('sep=,\nquestion,answer\na,b\n"two\nlines",b,c\nd,e\n', encoding="utf-8")
    assert "the row on lines 4 to 5 has 3 fields" in found_by_code(read(path, tmp_path / "out")[0])["DATA-CSV"].what


def test_empty_rows_of_a_spreadsheet_are_told_once_and_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(table(delimiter=";") + b";;\r\n" * 2)
    report = read(path, tmp_path / "out")[0]
    assert report.num_rows == NUM_ROWS
    assert found_by_code(report)["DATA-EMPTY-ROWS"].what == "2 rows of the table are empty in every column and not counted."
    assert not any(finding.severity in ("error", "warn") for finding in report.findings)


def test_a_line_with_one_name_is_a_title_only_above_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question;\n" + "".join(f"{q(n)};{a(n)}\n" for n in range(NUM_ROWS)), encoding="utf-8")
    with pytest.raises(DataError, match="columns found: question, column 2"):
        read(path, tmp_path / "out")
    path.write_bytes(table(before="Questions of March,\r\n"))
    assert "(“Questions of March”)" in found_by_code(read(path, tmp_path / "out")[0])["DATA-TITLE"].what


def test_an_answer_that_is_a_list_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines([{"question": q(0), "answer": [a(0)]}, *({"question": q(n), "answer": [a(n), "two"]} for n in range(1, 5))]))
    report, conversations = read(path, tmp_path / "out")
    assert said(conversations[2]) == pair(2) and found_by_code(report)["DATA-LISTED"].what.startswith("Row 2 has a list as its answer")


def test_a_broken_place_in_a_list_ends_it_and_no_button_leaves_out_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    rows = [json.dumps({"question": q(n), "answer": a(n)}) for n in range(NUM_ROWS)]
    rows[5] = rows[5][:-1] + ",}"
    rows[2] = rows[0]
    path.write_text("[\n" + ",\n".join(rows) + "\n]", encoding="utf-8")
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == 5
    assert report.unread.startswith("Row 6 line 7, column ") and "a trailing comma" in report.unread
    assert report.unread.endswith("Nothing after it was read, only the 5 rows before it were.")
    assert "DATA-DUPLICATE" in found_by_code(report) and not any(finding.fix_action for finding in report.findings)
    path.write_text("".join(rows[3:]), encoding="utf-8")
    assert len(read(path, tmp_path / "out")[1]) == 2
    path.write_text("[" + ",".join(rows[3:5]), encoding="utf-8")
    assert "the list is not finished" in read(path, tmp_path / "out")[0].unread


def test_a_value_of_a_list_that_is_too_deep_is_one_row_only(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    rows: list[Any] = [{"question": q(n), "answer": a(n)} for n in range(NUM_ROWS)]
    rows[5]["answer"] = json.loads("[" * 50 + "]" * 50)
    path.write_text(json.dumps(rows), encoding="utf-8")
    report, conversations = read(path, tmp_path / "out")
    assert len(conversations) == NUM_ROWS - 1 and found_by_code(report)["DATA-LIMIT"].rows == (6,) and not report.unread


def test_a_broken_place_far_before_the_end_is_found_without_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    rows = [json.dumps({"question": q(n), "answer": a(n), "number": -1.5e-10 * n, "is": True}) for n in range(300)]
    path.write_text("[" + ", ".join(rows) + "]", encoding="utf-8")
    for block in (61, 67, 71, 1000):  # Cut at every kind of place.
        monkeypatch.setattr(json_rows, "BLOCK", block)
        whole = list(json_rows.read_json_file(path, Progress(), lambda code, what: None))
        assert [row for _, row in whole] == [json.loads(row) for row in rows]
    rows[4] = rows[4][:-1] + ",}"
    path.write_text("[" + ", ".join(rows) + "]", encoding="utf-8")
    progress = Progress()
    *_, (number, problem) = json_rows.read_json_file(path, progress, lambda code, what: None)
    assert number == 5 and isinstance(problem, RowProblem) and "a trailing comma" in problem.what
    assert progress.done_bytes < 3000


def test_a_paragraph_with_a_bad_byte_is_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    parts = [f"{q(n)}\n{a(n)}".encode() for n in range(NUM_ROWS)]
    parts[3] = "caf\u00e9\nafter it".encode("cp1252")
    parts[8] = b"a\0b"
    path.write_bytes(b"\xef\xbb\xbf\n" + b"\n\n".join(parts))
    report, conversations = read(path, tmp_path / "out")
    assert [row.text for row in conversations] == [part.decode() for n, part in enumerate(parts) if n not in (3, 8)]
    bad = found_by_code(report)
    assert bad["DATA-UTF8"].rows == (4,) and bad["DATA-UTF8"].what.startswith("Row 4 line 11: byte 4 (0xe9)")
    assert bad["DATA-CTRL"].rows == (9,)


@pytest.mark.parametrize("answer", ANSWERS_IN_JSON)
def test_an_answer_that_is_a_json_list_stays_the_text_that_it_is(answer: Callable[[int], str], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines({"prompt": q(n), "completion": answer(n)} for n in range(NUM_ROWS)))
    assert [said(row) for row in read(path, tmp_path / "out")[1]] == [[("user", q(n)), ("assistant", answer(n))] for n in range(NUM_ROWS)]
    path.write_bytes(lines({"prompt": answer(n), "chosen": answer(n), "rejected": answer(n + 1)} for n in range(NUM_ROWS)))
    conversations = read(path, tmp_path / "out", "preference")[1]
    assert said(conversations[5]) == [("user", answer(5)), ("assistant", answer(5))]


def test_prompts_and_answers_as_text_of_turns_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    asked, answers = json.dumps(turns(1)[:1]), json.dumps([call, {"role": "tool", "content": "1"}, *turns(1)[1:]])
    path.write_bytes(lines([{"prompt": asked, "completion": answers}] * NUM_ROWS))
    assert said(read(path, tmp_path / "out")[1][0]) == [pair(1)[0], ("assistant", ""), ("tool", "1"), pair(1)[1]]


@pytest.mark.parametrize("marks", [("True", "False"), (1, 0), (1.0, 0.0), ("TRUE", "FALSE"), ("1", "0")])
def test_ratings_as_tables_write_them(marks: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / ("kto.csv" if isinstance(marks[0], str) else "kto.jsonl")
    rows = [{"prompt": q(n), "completion": a(n), "label": marks[n % 2]} for n in range(NUM_ROWS)]
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_bytes(lines(rows))
    with pytest.raises(DataError, match="rated good or bad"):
        read(path, tmp_path / "out")
    assert [said(row) for row in read(path, tmp_path / "out", "preference")[1]] == [pair(n) for n in range(0, NUM_ROWS, 2)]


@pytest.mark.parametrize("label", ["billing", 7, 0.5, None])
def test_another_label_is_no_rating(label: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines({"prompt": q(n), "completion": a(n), "label": label} for n in range(NUM_ROWS)))
    assert read(path, tmp_path / "out")[0].format == "prompt-completion"


PREFERENCES: tuple[Callable[[int], Any], ...] = (
    lambda n: {"prompt": q(n), "response_j": a(n), "response_k": "no"},
    lambda n: {"question": q(n), "response_chosen": a(n), "response_rejected": "no"},
    lambda n: {"prompt": q(n), "chosen": turns(n), "rejected": turns(n), "messages": turns(n), "score_chosen": 8.5},
    lambda n: {"conversations": [{"from": "human", "value": q(n)}], "chosen": {"from": "gpt", "value": a(n)}, "rejected": {"from": "gpt", "value": "no"}},
    lambda n: {"prompt": [{"role": "user", "content": q(n)}], "chosen": [{"role": "assistant", "content": a(n)}], "rejected": [{"role": "assistant", "content": "no"}]},
)  # fmt: skip


@pytest.mark.parametrize("make", PREFERENCES)
def test_preference_layouts(make: Callable[[int], Any], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(make(n) for n in range(NUM_ROWS)))
    with pytest.raises(DataError, match="preference pairs"):
        read(path, tmp_path / "out")
    assert [said(row) for row in read(path, tmp_path / "out", "preference")[1]] == [pair(n) for n in range(NUM_ROWS)]


def test_thinking_beside_the_answer_and_answers_of_weight_zero(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines({"question": q(n), "reasoning": f"thought {n}", "answer": a(n)} for n in range(NUM_ROWS)))
    assert read(path, tmp_path / "out")[1][3].messages[1].thinking == "thought 3"
    bad = {"role": "assistant", "content": "bad", "weight": 0}
    path.write_bytes(lines({"messages": [{"role": "user", "content": "?"}, bad, *turns(n)]} for n in range(NUM_ROWS)))
    assert [message.is_learned for message in read(path, tmp_path / "out")[1][3].messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", b'[{"text": "a"}] [{"text": "b"}]', "more text after the end of the list"),
        ("t.csv", table(header=None), "looks like a row"),
        ("t.jsonl", lines({"question": q(n), "A": "x", "B": "y", "answer": "A"} for n in range(12)), "Map the columns"),
        ("t.jsonl", lines({"messages": "['a', " + "[" * 60 + "]" * 60 + "]"} for _ in range(12)), "JSON"),
        ("t.jsonl", lines({"messages": "[" * 5000 + "]" * 5000} for _ in range(12)), "32 levels"),
    ],
)
def test_what_is_still_refused_is_refused_in_words(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        told = [finding.what for finding in read(path, tmp_path / "out")[0].findings]
    except DataError as error:
        told = [problem.sentence() for problem in error.problems]
    assert any(words in text for text in told), told


def test_columns_that_the_first_row_lacks_are_learned_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    more: list[dict[str, str]] = [{"context": "Hills."}, {"system": "Be brief."}, {"reasoning": "It is known."}]
    rows = [{"question": q(n), "answer": a(n)} | (more[n % 4 - 1] if n % 4 else {}) for n in range(12)]
    rows.append({"query": q(12), "response": a(12)})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    report, found = read(path, tmp_path / "out")
    assert report.mapping["user"] == "{context}\n\n{question}" and {"system", "thinking"} <= set(report.mapping)
    assert said(found[0]) == pair(0) and said(found[12]) == pair(12)
    assert said(found[1])[0] == ("user", f"Hills.\n\n{q(1)}")
    assert said(found[2]) == [("system", "Be brief."), *pair(2)]
    assert found[3].messages[-1].thinking == "It is known."


def test_one_byte_that_is_not_utf8_does_not_make_the_other_letters_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = "".join(f'"{q(n)}","{a(n)}"\n' for n in range(20))
    path.write_bytes(b"prompt,completion\n" + rows.encode() + b"caf\xe9,Yes\n")
    report, found = read(path, tmp_path / "out")
    assert [said(row) for row in found] == [pair(n) for n in range(20)]
    problem = report.findings[0]
    assert (problem.code, problem.rows) == ("DATA-UTF8", (21,)) and "line 22: `prompt` has a byte (0xe9)" in problem.what


def test_as_many_letters_in_utf8_as_stray_bytes_are_utf8(tmp_path: Path) -> None:
    """Letters of two bytes that fit do not come about by chance."""
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,completion\nWhere?,In a café\n".encode() + b"Why?,Because \xff\n")
    assert [said(row) for row in read(path, tmp_path / "out")[1]] == [[("user", "Where?"), ("assistant", "In a café")]]


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "cp1251", "mac_roman"])
def test_a_table_in_an_encoding_that_cannot_be_told_is_refused(encoding: str, tmp_path: Path) -> None:
    asked = {"shift_jis": "質問です、ね", "gb18030": "这是问题", "cp1251": "Вопрос о реке", "mac_roman": "Où est l'été"}[encoding]
    path = tmp_path / "rows.csv"
    path.write_bytes(("prompt,completion\n" + "".join(f"{asked} {n},{asked}\n" for n in range(20))).encode(encoding))
    with pytest.raises(DataError, match="neither UTF-8"):
        read(path, tmp_path / "out")


def test_texts_of_which_some_are_conversations_are_told_apart_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = [f"### Human: {q(n)}### Assistant: {a(n)}" if n % 3 else f"A note on {q(n)}" for n in range(30)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    report, found = read(path, tmp_path / "out")
    told = {finding.code: finding for finding in report.findings}
    assert "10 of 30 rows are plain text" in told["DATA-PLAIN"].what and told["DATA-PLAIN"].rows[:3] == (1, 4, 7)
    assert told["DATA-TRANSCRIPT"].what.startswith("Some of the texts")
    # As a fix writes it down.
    path.write_text("\n".join(row.as_line() for row in found), encoding="utf-8")
    again, same = read(path, tmp_path / "again")
    assert same == found and {finding.code for finding in again.findings} == set(told) - {"DATA-TRANSCRIPT"}


def test_a_number_is_a_fine_completion(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": q(n), "completion": n}) for n in range(12)), encoding="utf-8")
    assert [said(row)[1] for row in read(path, tmp_path / "out")[1]] == [("assistant", str(n)) for n in range(12)]


def test_line_ends_of_windows_are_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"One line,\r\nand another.\r\n\r\nThe second.\r\n")
    assert [row.text for row in read(path, tmp_path / "out")[1]] == ["One line,\nand another.", "The second."]
