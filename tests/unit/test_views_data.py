"""What the Data tab says of lengths, languages and formats, and how a read that takes long is shown."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qlora_ui.base.progress import Cancelled
from qlora_ui.base.units import MIB, format_duration
from qlora_ui.data.load import inspect
from qlora_ui.data.report import DataReport, Finding
from qlora_ui.estimate.memory import saved_bytes
from qlora_ui.hardware.devices import cpu_profile
from qlora_ui.runs.card import Holder
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import find_preset
from qlora_ui.settings.run_config import option_by_path
from qlora_ui.settings.sections import BUILTIN_MODEL, DataSection
from qlora_ui.ui.draft import Draft, make_draft
from qlora_ui.ui.inspection import Inquiry, Pending
from qlora_ui.ui.service import Service
from qlora_ui.ui.tabs.data import row_in
from qlora_ui.ui.views.data_lengths import formats_html, languages_html, lengths_html
from qlora_ui.ui.views.data_report import sources_html, verdict_html
from qlora_ui.ui.views.model_card import known_html
from qlora_ui.ui.views.ready import LONG_RUN_S, ready_html, start_label, waits_html
from qlora_ui.ui.views.recipe import automatic_words, caution_words, idle_words
from qlora_ui.ui.views.tokens import row_html
from tests.journals import write_run

TOKENS = {
    "total": 9000, "kept": 8800, "trained": 4400, "trained_share": 0.5, "mean": 90.0, "median": 80, "p95": 250, "p99": 500, "shortest": 20,
    "longest": 600, "max_length": 512, "proposed_max_length": 256, "cut_at_proposed": 5, "truncated": 2, "answers_cut": 1,
    "without_answer": 0, "histogram": {"edges": [20, 200, 400, 600], "counts": [90, 8, 2]},
}  # fmt: skip


def drafted(workspace: Workspace, path: Path) -> tuple[Draft, DataReport]:
    path.write_text(
        "\n".join(json.dumps({"prompt": f"What is the name of river {n}?", "completion": f"It is the Elbe, {n}."}) for n in range(100))
    )
    service = Service(workspace)
    values = {"data.sources": [str(path)], "data.max_length": 512}
    report = inspect(DataSection(sources=(str(path),)), workspace).with_tokens(TOKENS, ())
    draft = make_draft(service, {**_all_values(), **values}, "", service.device("NVIDIA GeForce RTX 3060"))
    return replace(draft, look=done(report)), report


def test_the_ready_card_counts_what_the_job_uses(workspace: Workspace, tmp_path: Path) -> None:
    draft, report = drafted(workspace, tmp_path / "rows.jsonl")
    tokens = TOKENS | {"usable": {"rows": 19, "mean": 80.0, "longest": 500, "trained_share": 0.5}}
    values = {**draft.values, "eval.share": 0.01, "train.packing": "off", "train.warmup": 0.03}
    draft = make_draft(service_that_counted(workspace, report.with_tokens(tokens, ())), values, "", draft.device)
    # One row is held back at least; of 100 rows, 81 are left out for their length or since cutting takes their answer.
    assert " 18 rows, 1 held back, 81 left out" in ready_html(draft)
    assert draft.duration is not None and draft.duration.num_steps == 6
    # transformers rounds the share of warm-up steps up.
    assert automatic_words(draft, "train.warmup") == "1 of 6 steps"
    beyond = make_draft(service_that_counted(workspace, report.with_tokens(tokens, ())), values | {"train.warmup": 9}, "", draft.device)
    assert "The warm-up takes 9 steps and the run has 6 steps" in caution_words(beyond, "train.warmup")
    assert "q-ready-warmup" in ready_html(beyond) and "q-ready-warmup" not in ready_html(draft)
    assert "each row 3 times" in ready_html(draft) and "q-ready-unseen" not in ready_html(draft)
    one = replace(report, sources=tuple(replace(source, num_rows=1, num_seen=1) for source in report.sources))
    assert ">1 row, " in sources_html([{"id": report.sources[0].source}], one)
    cut = make_draft(service_that_counted(workspace, report.with_tokens(tokens | {"answers_cut": 9}, ())), values, "", draft.device)
    assert "9 of 19 rows lose their answer" in ready_html(cut) and "q-ready-cut" not in ready_html(draft)
    # Of 19 rows one is held back, which an evaluation would call too few once the run is done; of 100 rows, 5.
    assert not caution_words(draft, "eval.share")  # a third of 19 rows would be gone
    many = make_draft(service_that_counted(workspace, report), values | {"eval.share": 0.05}, "", draft.device)
    assert caution_words(many, "eval.share") == "5 rows are too few to tell whether it is better: 0.06 holds back 6"
    enough = make_draft(service_that_counted(workspace, report), values | {"eval.share": 0.06}, "", draft.device)
    assert not caution_words(enough, "eval.share")
    # The demo's number of steps stays when its data is replaced: most of a larger file would not be looked at, without a word.
    short = make_draft(service_that_counted(workspace, report), values | {"train.max_steps": 2}, "", draft.device)
    assert not idle_words(draft, "train.epochs")
    assert idle_words(short, "train.epochs") == "Has no effect now: “Number of steps” is 2 and decides"
    assert "see about 32 rows" in ready_html(short) and "“Number of steps” is 2: the run ends before" in ready_html(short)


def service_that_counted(workspace: Workspace, report: DataReport) -> Service:
    """A service whose looks are done."""
    service = Service(workspace)
    service.inspect = service.look = lambda asked, edited_at=None: done(report)  # type: ignore[method-assign,assignment]
    return service


def done(report: DataReport) -> Pending[DataReport]:
    looked: Pending[DataReport] = Pending(answer=report)
    looked.done.set()
    return looked


def _all_values() -> dict[str, object]:
    from qlora_ui.settings.run_config import RunConfig, option_by_path

    config = RunConfig()
    return {path: config.get(path) for path in option_by_path()}


def test_lengths_are_drawn_with_the_limit_and_a_better_one(workspace: Workspace, tmp_path: Path) -> None:
    draft, report = drafted(workspace, tmp_path / "rows.jsonl")
    html = lengths_html(draft, report)
    assert html.count("<rect") == 3 and html.count("<line") == 1
    assert "2 of 100 rows are longer than the limit of 512" in html and "50 % of all tokens are learned" in html
    assert "1 loses a part of its answer" in html
    assert "256 tokens would fit this data" in html and "less memory" in html and "cuts 5 rows" in html
    assert 'data-act="set-length" data-id="256"' in html
    assert lengths_html(draft, replace(report, tokens=None)) == ""
    alike = TOKENS | {"shortest": 34, "longest": 34, "median": 34, "truncated": 0}
    assert ">34 tokens in every row; none is longer" in lengths_html(draft, replace(report, tokens=alike))


def test_without_a_dataset_the_places_say_what_comes_there_and_start_what_it_waits_for(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    # As the hidden control holds it once the last one was taken off.
    bare = make_draft(Service(workspace), {**draft.values, "data.sources": "[]"}, "", draft.device)
    assert start_label(bare) == "Choose a dataset"
    assert "The verdict comes here" in verdict_html(bare) and "Not trainable" not in verdict_html(bare)


def test_a_verdict_names_the_format_or_that_there_are_several(workspace: Workspace, tmp_path: Path) -> None:
    draft, report = drafted(workspace, tmp_path / "rows.jsonl")
    assert "100 rows in the format “Prompt and completion”." in verdict_html(replace(draft, look=done(report)))
    (source,) = report.sources
    others = [replace(source, format="alpaca", name=f"{name}.json", why="Other columns.") for name in "abcd"]
    html = verdict_html(replace(draft, look=done(replace(report, sources=(source, *others)))))
    assert (
        f"100 rows in several formats.</strong> rows.jsonl: {source.why[:9]}" in html
        and "a.json, b.json and 2 more: Other columns." in html
    )


def test_findings_that_one_setting_mends_offer_it_once(workspace: Workspace, tmp_path: Path) -> None:
    draft, report = drafted(workspace, tmp_path / "rows.jsonl")
    longer = {"action": "set", "path": "data.max_length", "value": 320}
    cut, lost = (Finding(code, "warning", 9, (3,), f"{code}.", fix_action=dict(longer)) for code in ("CUT", "LOST"))
    dropped = [Finding(code, "warning", 9, (3,), f"{code}.", fix_action={"action": "drop", "code": code}) for code in ("EMPTY", "TWICE")]
    html = verdict_html(replace(draft, look=done(replace(report, findings=(cut, lost, *dropped)))))
    assert html.count(">Set “Longest conversation” to 320<") == 1 and html.count(">Leave these rows out<") == 2


def test_a_button_counts_the_rows_that_go_with_its_own(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    lines = [json.dumps({"prompt": f"P{number}", "completion": f"C{number}"}) for number in range(20)]
    (tmp_path / "broken.jsonl").write_text("\n".join([*lines, lines[0], '{"prompt":', '{"prompt": "P"}']), encoding="utf-8")
    report = inspect(DataSection(sources=(str(tmp_path / "broken.jsonl"),)), workspace)
    html = verdict_html(replace(draft, look=done(report)))
    assert html.count(">Leave out all 2 rows that cannot be used<") == 2 and ">Leave this row out<" not in html
    assert html.count("or leave out all 2 rows that cannot be used, which keeps 21") == 2
    assert ">Leave this row out, and 2 unusable<" in html


def test_languages_and_reasons(workspace: Workspace, tmp_path: Path) -> None:
    draft, report = drafted(workspace, tmp_path / "rows.jsonl")
    assert "English" in languages_html(report) and "Latin 100 %" in languages_html(report)
    german = replace(report, sources=tuple(replace(source, languages={"German": 0.6, "unclear": 0.4}) for source in report.sources))
    for other, model_id, is_told in ((german, BUILTIN_MODEL, True), (german, "owner/name", False), (report, BUILTIN_MODEL, False)):
        assert ("speaks English only" in languages_html(other, model_id)) is is_told
    reasons = formats_html(report)
    assert "Prompt and completion</strong>: taken" in reasons and "there is no column <code>messages</code>" in reasons
    assert "q-lengths" in verdict_html(draft)


def test_a_read_can_be_stopped_and_begun_again() -> None:
    seen: list[int] = []

    def slow(told: object, is_cancelled: object) -> str:
        seen.append(1)
        for step in range(500):
            told(f"Reading {step}", step / 500)  # type: ignore[operator]
            if is_cancelled():  # type: ignore[operator]
                raise Cancelled("stopped")
            time.sleep(0.02)
        return "read"

    inquiry: Inquiry[str] = Inquiry("test", lambda: None)
    pending = inquiry.ask("key", slow, 1.3)
    left = pending.seconds_left()
    assert not pending.is_done and pending.share is not None and left is not None and 5 < left < 30
    inquiry.stop()
    assert pending.is_done and pending.is_stopped and pending.answer is None
    time.sleep(0.1)
    assert inquiry.ask("key", slow, 0) is pending and len(seen) == 1, "a stopped question is not asked by itself"
    inquiry.forget_stopped()
    assert inquiry.ask("key", lambda told, stopped: "read", 5).answer == "read"


def test_a_page_that_lies_open_does_not_take_the_reading_from_the_one_that_is_edited() -> None:
    def slow(told: object, is_cancelled: object) -> str:
        for _ in range(10):
            time.sleep(0.02)
            if is_cancelled():  # type: ignore[operator]
                raise Cancelled("stopped")
        return "read"

    inquiry: Inquiry[str] = Inquiry("test", lambda: None)
    until = time.monotonic() + 5
    # Each is drawn anew at all news of the other's data.
    while (read := [inquiry.ask(page, slow, 0.05, edited_at=page).answer for page in (2.0, 1.0)]) != ["read", "read"]:
        assert time.monotonic() < until, read
    # One that waits can be stopped, too.
    inquiry.ask("of the page that is edited", slow, 0)
    assert not inquiry.ask("of another page", slow, 0, edited_at=1.0).is_done
    inquiry.stop()
    assert inquiry.ask("of another page", slow, 0, edited_at=1.0).is_stopped
    inquiry.forget_stopped()
    # What somebody does now comes first.
    waiting = inquiry.ask("of another page", slow, 0)
    assert inquiry.ask("of the page that was edited", slow, 5).answer == "read" and waiting.is_cancelled


def test_two_files_of_one_name_are_told_apart_by_their_folders() -> None:
    first, second, other = "/home/a/2024/chats.jsonl", "/home/a/2025/chats.jsonl", "/home/a/2025/more.jsonl"
    html = sources_html([{"id": first}, {"id": second}, {"id": other}], None)
    assert html.count("in 2024") == html.count("in 2025") == 1
    assert "in 2025" not in sources_html([{"id": second}, {"id": other}], None)
    html = sources_html([{"id": first}, {"id": "/ws/datasets/d93730d8/chats.jsonl"}], None)
    assert "in 2024" in html and "kept copy" in html and "in d93730d8" not in html


def test_a_row_that_could_not_be_read_is_not_offered_to_be_shown(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n{"prompt": "a"\n' + '{"prompt": "b", "completion": "c"}\n' * 2)
    report = inspect(DataSection(sources=(str(path),)), workspace)
    draft = replace(drafted(workspace, tmp_path / "rows.jsonl")[0], look=done(report))
    broken, empty = (next(found for found in report.findings if words in found.what) for words in ("ends too early", "empty answer"))
    html = verdict_html(draft)
    assert broken.rows == (2,) and 'data-id="2"' not in html
    assert empty.rows == (1,) and 'data-act="show-row" data-id="1"' in html
    assert draft.config is not None and "said of whole files" not in html
    sliced = draft.config.changed({"data.sources": [{"id": str(path), "rows": "first 2"}]})
    assert "said of whole files" in verdict_html(replace(draft, config=sliced))


def test_of_several_files_each_finding_names_its_own(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    draft = drafted(workspace, tmp_path / "rows.jsonl")[0]
    for sources, is_named in (((str(path),), False), ((str(path), "builtin:plain-pirate"), True)):
        html = verdict_html(replace(draft, look=done(inspect(DataSection(sources=sources), workspace))))
        assert "Only 1 row" in html and (">short.jsonl:<" in html) == is_named


def test_a_number_beyond_the_rows_shows_the_nearest_row() -> None:
    assert [row_in(number, 120) for number in (None, 0, -5, 1, 2.7, 120, 9999)] == [1, 1, 1, 1, 2, 120, 120] and row_in(3, 0) == 1


def test_the_box_for_rows_shows_how_to_write_some() -> None:
    assert 'placeholder="all, or first 500"' in sources_html([{"id": "/a/chats.jsonl"}], None)


def test_a_bound_is_no_refusal_while_tokens_are_not_counted(workspace: Workspace, tmp_path: Path) -> None:
    counted, report = drafted(workspace, tmp_path / "rows.jsonl")
    service = service_that_counted(workspace, report)
    long = {**counted.values, "data.max_length": 100_000, "train.packing": "off", "train.batch_size": 8}
    service.look = lambda config, edited_at: Pending()  # type: ignore[method-assign]
    service.inspect = lambda data, edited_at: done(replace(report, tokens=None))  # type: ignore[method-assign]
    counting = make_draft(service, long, "", counted.device)
    html = ready_html(counting)
    assert counting.fits is None and counting.is_at_most and counting.memory is not None
    assert "at most" in html and "Counting tokens" in html and "until tokens are counted" in html and ">Ready<" in html
    assert "too large" not in html and "not fit" not in html and "q-chip-bad" not in html
    # What does not fit whatever the rows are is said at once.
    small = replace(counted.device, free_bytes=1 << 28)
    assert make_draft(service, long, "", small).fits is False

    usable = {"rows": 100, "mean": 80.0, "longest": 500, "trained_share": 0.5}
    service.look = lambda config, edited_at: done(report.with_tokens(TOKENS | {"usable": usable}, ()))  # type: ignore[method-assign]
    known = make_draft(service, long, "", counted.device)
    assert known.fits is True and not known.is_at_most and "at most" not in ready_html(known)


def test_what_will_be_otherwise_and_what_the_memory_hangs_on_stand_on_the_card(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    assert "fast path" not in ready_html(draft)
    noisy = ready_html(make_draft(Service(workspace), {**draft.values, "train.neftune": 5}, "", draft.device))
    assert "The fast path will be off: embedding noise changes with every forward pass." in noisy
    # Nothing can be measured on a card from the list.
    assert "The share of CUDA itself is assumed.</p></details>" in noisy
    assert (automatic_words(draft, "train.fast_path"), automatic_words(draft, "train.packing")) == ("Now on", "Now on")


def test_a_well_known_model_says_how_long_it_would_take_before_it_is_downloaded(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    assert draft.facts is not None and draft.duration is not None
    listed = known_html(draft, [("owner/the-same", draft.facts)])
    # A first press of Start would fetch 16 GB without a word beside it.
    away = ready_html(make_draft(Service(workspace), {**draft.values, "model.id": "meta-llama/Llama-3.1-8B-Instruct"}, "", draft.device))
    assert "Start downloads about 15.0\xa0GiB" in away and "Start downloads" not in ready_html(draft)
    assert f"· {format_duration(draft.duration.total_s)}<" in listed and format_duration(draft.duration.total_s) in ready_html(draft)
    long = replace(draft, duration=replace(draft.duration, total_s=LONG_RUN_S))
    assert "q-ready-long" in ready_html(long) and "q-ready-long" not in ready_html(draft)


def test_a_disk_that_may_not_hold_what_the_run_saves_is_told_before_it_starts(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    assert draft.free_disk_bytes and "q-ready-disk" not in ready_html(draft)
    assert draft.memory is not None and draft.config is not None
    needed = saved_bytes(draft.memory, draft.config)
    # Rank 16 of the built-in model: 4.9 M numbers in bf16 with two moments each, four checkpoints and an adapter.
    assert needed == 13 * 2 * draft.memory.trainable_params + 64 * MIB
    assert "q-ready-disk" not in ready_html(replace(draft, free_disk_bytes=needed))
    assert "which has 8 MiB left" in ready_html(replace(draft, free_disk_bytes=8 * MIB))


def test_start_says_what_it_would_wait_for_and_only_the_demo_is_a_first_try(workspace: Workspace) -> None:
    assert "A first try is set up" in waits_html(None) and "The queue is held" in waits_html(None, is_held=True)
    view = Service(workspace).view(write_run(workspace, end="loading").id)
    assert "is getting ready. Start puts this one behind it." in waits_html(view)
    done = Service(workspace).view(write_run(workspace, end="done").id)
    assert waits_html(done) == "" and "The queue is held" in waits_html(done, is_held=True)
    export = Holder("export", "Pirate", 0.0, False)
    assert "An export has a model in memory (Pirate). Start waits until it is done." in waits_html(done, holder=export)
    values = {**_all_values(), **{path: find_preset("demo").config.get(path) for path in option_by_path()}}
    drafts = (Service(workspace).draft({**values, **more}, preset="demo") for more in ({}, {"output.name": "mine"}, {"model.id": "a/b"}))
    assert ["q-is-demo" in ready_html(draft) for draft in drafts] == [True, True, False]


def test_a_cpu_without_the_chosen_optimizer_says_which_one_trains(workspace: Workspace, tmp_path: Path) -> None:
    draft, _ = drafted(workspace, tmp_path / "rows.jsonl")
    values, words = {**draft.values, "train.optimizer": "paged_adamw_8bit"}, "plain AdamW trains: AdamW 8-bit, paged needs an NVIDIA card."
    on_card, on_cpu = (make_draft(Service(workspace), values, "", device) for device in (draft.device, cpu_profile(workspace)))
    assert words in ready_html(on_cpu) and words in caution_words(on_cpu, "train.optimizer")
    assert words not in ready_html(on_card) and not caution_words(on_card, "train.optimizer")
    assert (automatic_words(on_cpu, "train.fast_path"), automatic_words(on_cpu, "train.packing")) == (
        "Now off: it needs an NVIDIA card",
        "Now off",
    )


def test_a_length_beyond_the_context_of_the_model_is_told_on_the_card(workspace: Workspace, tmp_path: Path) -> None:
    counted, report = drafted(workspace, tmp_path / "rows.jsonl")
    assert counted.facts is not None and counted.facts.context_tokens == 8192

    def card(limit: int, longest: int) -> str:
        tokens = TOKENS | {"usable": {"rows": 100, "mean": 80.0, "longest": longest, "trained_share": 0.5}}
        service = service_that_counted(workspace, report.with_tokens(tokens, ()))
        return ready_html(make_draft(service, {**counted.values, "data.max_length": limit}, "", counted.device))

    words = "made for at most 8,192 tokens"
    assert words in card(20_096, 20_000)
    assert words not in card(8192, 20_000) and words not in card(20_096, 500)


def test_of_a_long_row_the_start_and_the_answer_are_shown() -> None:
    def shown(num_tokens: int, cut_at: int | None) -> list[str]:
        tokens = [
            SimpleNamespace(text=f"t{place} ", is_trained=place > 2900, is_special=False, is_cut=False, id=place)
            for place in range(num_tokens)
        ]
        kept = num_tokens if cut_at is None else cut_at
        row: Any = SimpleNamespace(tokens=tokens, cut_at=cut_at, num_tokens=num_tokens, num_kept=kept, num_trained=9)
        row.trained_share, row.trains_end, row.refused = 0.1, True, ""
        return re.sub(r"<[^>]+>", " ", row_html(row).partition('role="group"')[2]).split()

    # Only the first 1,500 were drawn: of a long document with a question at its end nothing that is learned.
    whole = shown(3000, None)
    assert {"t499", "t2000", "t2999"} <= {*whole} and "t500" not in whole and " ".join(whole).count("1,500 more") == 1
    cut = " ".join(shown(9000, 2048))
    assert "t2047 cut here, after 2,048 tokens t2048" in cut and "t2147 … 6,852 more" in cut and "t500 " not in cut
    assert "more" not in shown(1500, None) and "4,800 more" in " ".join(shown(5000, 100))
