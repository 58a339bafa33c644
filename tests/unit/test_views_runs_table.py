"""The list of runs and their comparison."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from qlora_ui.base.units import format_bytes
from qlora_ui.runs.listing import row_of
from qlora_ui.runs.read import read_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import BUILTIN_MODEL
from qlora_ui.ui.markup import with_units
from qlora_ui.ui.readycard import name_apart
from qlora_ui.ui.views.compare import comparison_html
from qlora_ui.ui.views.runs_table import EMPTY, PAGE_ROWS, details_html, differences_in_words, found, picked_html, sparkline, table_html
from qlora_ui.ui.views.train_tiles import tiles_html
from qlora_ui.ui.views.words import ago, describe_model, model_title
from tests.journals import write_run


def test_search_reads_name_model_tags_and_notes(workspace: Workspace) -> None:
    rows = [row_of(read_run(write_run(workspace, done=5, num_steps=10, values={"output.name": name}))) for name in ("Pirate", "Support")]
    rows[1] = replace(rows[1], tags=("night",), notes="second try")
    assert [row.name for row in found(rows, "pirate smollm2", "")] == ["Pirate"]
    assert [row.name for row in found(rows, "NIGHT second", "")] == ["Support"]
    assert found(rows, "", "failed") == [] and len(found(rows, "", "done")) == 2


def test_a_row_says_what_differs_and_what_came_out(workspace: Workspace) -> None:
    run = write_run(workspace, values={"lora.rank": 8, "train.learning_rate": 0.001, "output.name": "A <b>"}, done=40, num_steps=40)
    row = row_of(read_run(run))
    html = table_html([row], {row.id: run.config()}, [], page=0, num_found=1, num_all=1)
    assert "Adapter size 8, Learning rate 0.001" in html and "A &lt;b&gt;" in html and "✓ done" in html
    assert "<polyline" in html and "Newer" not in html and "Older" not in html


def test_a_dataset_is_named_by_its_file_and_not_by_its_path(workspace: Workspace) -> None:
    run = write_run(workspace, values={"data.sources": ["/home/someone/.local/share/qlora-ui/datasets/417ad13e/good.jsonl"]})
    row = row_of(read_run(run))
    html = table_html([row], {row.id: run.config()}, [], page=0, num_found=1, num_all=1)
    # Whatever else was changed: beside three settings it would be one of "2 more".
    assert "SmolLM2-135M-Instruct · good.jsonl · " in html and differences_in_words(run.config()) == "nothing, all defaults"


def test_what_is_ticked_is_said_beside_the_list_which_is_longer_than_a_screen() -> None:
    assert picked_html(0) == ""
    assert "1 ticked" in picked_html(1) and "Tick another" in picked_html(1)
    assert 'data-focus="runs-compare"' in picked_html(2) and "Tick another" not in picked_html(2)


def test_two_runs_of_one_name_are_told_apart_and_a_second_press_changes_nothing(workspace: Workspace) -> None:
    runs, seen = [write_run(workspace, done=5, num_steps=10, values={"output.name": "Pirate"}) for _ in range(3)], []
    for run in runs:
        for _ in range(2):
            name_apart(run, [*seen, row_of(read_run(run))])
        seen.append(row_of(read_run(run)))
    assert [row.name for row in seen] == ["Pirate", "Pirate 2", "Pirate 3"]


def test_pages(workspace: Workspace) -> None:
    row = row_of(read_run(write_run(workspace, done=5, num_steps=10)))
    html = table_html([row] * PAGE_ROWS, {}, [], page=1, num_found=1_234, num_all=1_234)
    assert "26 to 50 of 1,234" in html and "Newer" in html and "Older" in html
    assert table_html([], {}, [], page=0, num_found=0, num_all=0) == EMPTY
    assert "Nothing found" in table_html([], {}, [], page=0, num_found=0, num_all=5)


def test_at_most_four_can_be_ticked(workspace: Workspace) -> None:
    row = row_of(read_run(write_run(workspace, done=5, num_steps=10)))
    assert " disabled>" in table_html([row], {}, ["a", "b", "c", "d"], page=0, num_found=1, num_all=1)


def test_differences_are_counted_from_the_defaults(workspace: Workspace) -> None:
    run = write_run(workspace, done=5, num_steps=10)
    assert differences_in_words(run.config()) == "nothing, all defaults"
    many = run.config().changed({"lora.rank": 8, "train.epochs": 1, "train.learning_rate": 1e-3, "lora.rslora": True, "quant.type": "fp4"})
    assert differences_in_words(many).endswith(", 2 more") and "Adapter size 8" in differences_in_words(many)
    assert differences_in_words(None) == "settings cannot be read"


def test_what_the_runs_of_a_list_part_in_is_said_first(workspace: Workspace) -> None:
    preset = {"lora.rank": 8, "train.epochs": 1, "train.learning_rate": 1e-3, "data.max_length": 160, "eval.share": 0.1}
    runs = [write_run(workspace, values={**preset, "train.warmup": steps}, done=5, num_steps=10) for steps in (2, 7)]
    table = table_html([row_of(read_run(run)) for run in runs], {run.id: run.config() for run in runs}, [], page=0, num_found=2, num_all=2)
    assert all(re.search(rf'q-col-differs">Warm-up {steps}(\.0)?, [^<]*, 3 more<', table) for steps in (2, 7)), table


def test_which_part_of_the_data_and_what_weight_is_told(workspace: Workspace) -> None:
    # Two runs that differed in nothing else: both lines said "nothing, all defaults", and the comparison named one file twice.
    sources = ([{"id": "a.jsonl", "rows": "500"}], [{"id": "a.jsonl", "weight": 2.0}, {"id": "b.jsonl"}])
    runs = [write_run(workspace, values={"data.sources": part}, done=5, num_steps=10) for part in sources]
    configs = [run.config() for run in runs]
    assert differences_in_words(configs[0]) == "Data first 500"
    assert differences_in_words(configs[1]) == "Data a.jsonl (weight 2) + b.jsonl"
    html = comparison_html([row_of(read_run(run)) for run in runs], configs, only_different=True)
    assert "<td>a.jsonl (first 500)</td><td>a.jsonl (weight 2), b.jsonl</td>" in html


def test_comparison_can_show_differences_only(workspace: Workspace) -> None:
    runs = [write_run(workspace, values={"lora.rank": rank, "output.name": f"r{rank}"}, done=20, num_steps=20) for rank in (8, 32)]
    rows, configs = [row_of(read_run(run)) for run in runs], [run.config() for run in runs]
    short = comparison_html(rows, configs, only_different=True)
    whole = comparison_html(rows, configs, only_different=False)
    assert "Adapter size" in short and "Weight decay" not in short and "Weight decay" in whole
    assert "q-run0" in short and "q-run1" in short  # told apart by dash, not by colour alone
    same = comparison_html(rows, [configs[0], configs[0]], only_different=True)
    assert "The settings are the same." in same


def test_sparkline_says_its_ends() -> None:
    assert 'aria-label="Loss from 3 to 0.5"' in sparkline([3.0, 1.0, 0.5])
    assert "–" in sparkline([1.0])


def test_details_offer_a_new_run_from_the_adapter_where_there_is_one(workspace: Workspace) -> None:
    row = row_of(read_run(write_run(workspace, done=5, num_steps=5)))
    assert 'data-act="start_from"' in details_html(replace(row, has_adapter=True), None, "")
    assert 'data-act="start_from"' not in details_html(replace(row, has_adapter=False), None, "")


def test_moments_are_said_as_people_do() -> None:
    now = time.mktime((2026, 11, 24, 15, 0, 0, 0, 0, -1))
    assert ago(now - 5, now) == "just now" and ago(now - 700, now) == "11 min ago" and ago(now - 2 * 3600, now) == "today 13:00"
    assert ago(now - 3 * 86400, now) == "Sat 21 Nov 15:00" and ago(now - 400 * 86400, now) == "20 Oct 2025"


def test_a_model_has_one_name_on_every_tab() -> None:
    for model_id in ("C:\\models\\llama-8b", "C:\\models\\llama-8b\\", "/models/llama-8b/", "owner/llama-8b"):
        assert model_title(model_id) == describe_model(model_id) == "llama-8b"
    assert model_title(BUILTIN_MODEL) == "SmolLM2-135M-Instruct" and describe_model(BUILTIN_MODEL) == "SmolLM2-135M-Instruct (built in)"
    assert model_title("") == ""


def test_the_memory_of_a_run_is_the_same_number_on_every_tab(workspace: Workspace) -> None:
    # The allocator's peak is less than what the process takes of the card, which is what was predicted.
    view = read_run(write_run(workspace, num_steps=40))
    row = row_of(view)
    said = format_bytes(view.peak_measured_bytes or 0)
    assert said != format_bytes(view.peak_bytes or 0) and with_units(said) in tiles_html(view, [])
    assert said in comparison_html([row, row], [view.config, view.config], only_different=True)
    assert said in table_html([row], {row.id: view.config}, [], page=0, num_found=1, num_all=1)
