"""Curves are sent as what is new since a cursor, and said in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_ui.runs.events import Queued, Started, StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.read import RunReader
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.views.curves import curve_texts, new_points
from tests.journals import write_run


def step(number: int, loss: float = 1.0) -> StepLogged:
    return StepLogged(step=number, time=1e9 + number, loss=loss, learning_rate=1e-4)


def test_a_cursor_gets_only_what_came_after_it(workspace: Workspace) -> None:
    run = write_run(workspace, done=20, num_steps=40, end="live")
    reader = RunReader(run)
    first = new_points(reader.view(), None)
    assert first["reset"] and first["series"]["loss"]["x"] == list(range(1, 21))
    again = new_points(reader.view(), first["cursor"])
    assert not again["reset"] and all(not series["x"] for series in again["series"].values())
    JournalWriter(run.journal_path).write(step(21, 0.5))
    more = new_points(reader.view(), again["cursor"])
    assert more["series"]["loss"] == {"x": [21], "y": [0.5]} and not more["reset"]


def test_pieces_make_up_the_whole(workspace: Workspace) -> None:
    view = RunReader(write_run(workspace, done=40, num_steps=40, end="done")).view()
    whole = new_points(view, None)["series"]
    cursor: dict[str, Any] | None = None
    joined: dict[str, dict[str, list[float]]] = {}
    for count in (1, 7, 20, 40):
        part = replace(view, steps=view.steps[:count], evals=view.evals[: count // 10], memory=view.memory[: count // 2])
        piece = new_points(part, cursor)
        cursor = piece["cursor"]
        for name, series in piece["series"].items():
            kept = joined.setdefault(name, {"x": [], "y": []})
            kept["x"] += series["x"]
            kept["y"] += series["y"]
    rest = new_points(view, cursor)
    assert not rest["reset"]
    for name, series in rest["series"].items():
        assert joined[name]["x"] + series["x"] == whole[name]["x"]
        assert joined[name]["y"] + series["y"] == whole[name]["y"]


def test_a_rewound_run_is_drawn_anew(workspace: Workspace) -> None:
    run = write_run(workspace, done=20, num_steps=40, end="live")
    reader = RunReader(run)
    cursor = new_points(reader.view(), None)["cursor"]
    journal = JournalWriter(run.journal_path)
    journal.write(Queued())
    journal.write(Started(pid=1, process_started=1.0, host="here", launcher="thread", versions={}, device="CPU", resumed_from=10))
    for number in range(11, 21):
        journal.write(step(number, 0.25))
    answer = new_points(reader.view(), cursor)
    assert answer["reset"] and answer["series"]["loss"]["x"] == list(range(1, 21)) and answer["series"]["loss"]["y"][-1] == 0.25


@pytest.mark.parametrize(
    "cursor", [{"steps": 10**9}, {"steps": -1, "evals": 0, "memory": 0, "clock": 0, "last_time": None}, "x", [1], {"steps": "a"}]
)
def test_cursors_of_pages_are_not_trusted(workspace: Workspace, cursor: Any) -> None:
    view = RunReader(write_run(workspace, done=5, num_steps=10)).view()
    answer = new_points(view, cursor)
    assert answer["reset"] and len(answer["series"]["loss"]["x"]) == 5


def test_every_curve_is_said_in_a_sentence(workspace: Workspace) -> None:
    view = RunReader(write_run(workspace)).view()
    texts = curve_texts(view)
    assert "Training loss went from" in texts["loss"] and "held-back rows was best at step 120" in texts["loss"]
    assert "5.3 GiB were predicted" in texts["memory"]
    assert set(texts) == {"loss", "memory", "rate", "gradient", "speed"}
