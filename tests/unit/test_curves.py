"""The ends of curves that come with a tick: pages that keep up need not ask, and nobody misses a point."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from qlora_ui.runs.events import Finished, Started, StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.curves import Curves
from qlora_ui.ui.service import Service
from tests.journals import write_run


@dataclass
class Chart:
    """What static/chart.js does with what it is sent."""

    curves: Curves
    run: RunDir
    cursor: Any = None
    steps: list[float] = field(default_factory=list)
    asked: int = 0

    def sent(self, tail: dict[str, Any] | None) -> None:
        for piece in tail["pieces"] if tail else ():
            if self.cursor is not None and piece["since"] == self.cursor:
                self._append(piece)
        if tail is None or self.cursor != tail["cursor"]:
            self.asked += 1
            asked = {"runs": [self.run.id], "cursors": [self.cursor]}
            quick = self.curves.ask_quickly(asked)
            (piece,) = json.loads(quick) if quick is not None else json.loads(json.dumps(self.curves.ask(asked)))
            self.steps = [] if piece["reset"] else self.steps
            self._append(piece)

    def _append(self, piece: dict[str, Any]) -> None:
        self.steps += piece["series"]["loss"]["x"]
        self.cursor = piece["cursor"]


@pytest.fixture
def run(workspace: Workspace) -> RunDir:
    return write_run(workspace, num_steps=500, done=30, end="live")


def learn(run: RunDir, step: int) -> None:
    JournalWriter(run.journal_path).write(StepLogged(step=step, loss=1 / step, learning_rate=1e-4, grad_norm=0.5, tokens_per_s=9.0))


def drawn(service: Service, curves: Curves, run: RunDir) -> dict[str, Any] | None:
    tail = curves.tail(service.readers.view(run))
    found: dict[str, Any] | None = json.loads(json.dumps(tail))
    return found


def test_a_page_that_keeps_up_asks_once_and_misses_no_point(workspace: Workspace, run: RunDir) -> None:
    service = Service(workspace)
    curves = Curves(service)
    chart = Chart(curves, run)
    for step in range(31, 61):
        learn(run, step)
        chart.sent(drawn(service, curves, run))
    assert chart.steps == list(range(1, 61))
    assert chart.asked == 1


def test_pages_that_come_go_and_sleep_have_the_same_curve(workspace: Workspace, run: RunDir) -> None:
    service = Service(workspace)
    curves = Curves(service)
    chance = random.Random(1)
    charts = [Chart(curves, run) for _ in range(3)]
    for step in range(31, 131):
        learn(run, step)
        if chance.random() < 0.3:
            continue
        tail = drawn(service, curves, run)
        for chart in charts:
            if chance.random() < 0.5:
                chart.sent(tail)
    charts.append(Chart(curves, run))
    tail = drawn(service, curves, run)
    for chart in charts:
        chart.sent(tail)
        assert chart.steps == list(range(1, 131))


def test_a_rewound_curve_is_sent_anew(workspace: Workspace, run: RunDir) -> None:
    service = Service(workspace)
    curves = Curves(service)
    chart = Chart(curves, run)
    chart.sent(drawn(service, curves, run))
    learn(run, 31)
    chart.sent(drawn(service, curves, run))
    JournalWriter(run.journal_path).write(
        Started(pid=1, process_started=1.0, host="here", launcher="thread", versions={}, device="CPU", resumed_from=10)
    )
    learn(run, 11)
    chart.sent(drawn(service, curves, run))
    assert chart.steps == list(range(1, 12))


def test_the_end_of_the_run_comes_without_a_new_point(workspace: Workspace, run: RunDir) -> None:
    service = Service(workspace)
    curves = Curves(service)
    chart = Chart(curves, run)
    chart.sent(drawn(service, curves, run))
    before = drawn(service, curves, run)
    assert before is not None and before["end"]["live"]
    JournalWriter(run.journal_path).write(Finished(step=30))
    tail = drawn(service, curves, run)
    assert tail is not None and not tail["end"]["live"] and tail["cursor"] == chart.cursor


def test_a_long_tail_is_cut_and_the_page_asks(workspace: Workspace, run: RunDir) -> None:
    service = Service(workspace)
    curves = Curves(service)
    chart = Chart(curves, run)
    chart.sent(drawn(service, curves, run))
    for step in range(31, 431):
        learn(run, step)
    tail = drawn(service, curves, run)
    assert tail is not None and tail["pieces"] == []
    chart.sent(tail)
    assert chart.steps == list(range(1, 431)) and chart.asked == 2
