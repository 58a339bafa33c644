"""Two machines of a run compare what they have; in threads, with nothing but a number at a time between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qlora_ui.base.errors import RunError
from qlora_ui.engine import alike
from qlora_ui.settings.run_config import RunConfig

MARKS = {"rows_sha256": "a", "weights_mark": "b"}
FIRST = RunConfig().changed({"launch.where": "process", "launch.num_machines": 2})
SECOND = FIRST.changed({"launch.machine_rank": 1, "launch.main_host": "10.0.0.1", "model.id": "/there/model", "output.name": "part 2"})


def on_two_machines(*parts: Callable[[Callable[[int], int]], object]) -> list[str]:
    """What each raised, where `parts` are given the highest of both numbers; fails where one asks more often than the other."""
    meeting, said = threading.Barrier(len(parts), timeout=5), {}

    def part(number: int) -> str:
        def agree(mine: int) -> int:
            said[number] = mine
            meeting.wait()
            highest = max(said.values())
            meeting.wait()
            return highest

        try:
            parts[number](agree)
        except RunError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        return list(pool.map(part, range(len(parts))))


@pytest.mark.parametrize(
    ("config", "marks", "step", "words"),
    [
        (SECOND, MARKS, 0, ""),
        (SECOND.changed({"train.learning_rate": 1e-3, "output.save_every": 7}), MARKS, 0, "same settings: “Learning rate”, “Save every”"),
        (SECOND, MARKS | {"rows_sha256": "c"}, 0, "same rows"),
        (SECOND, MARKS | {"weights_mark": "c"}, 0, "same base model"),
        (SECOND, MARKS, 4, "same step: one from 0, another from 4"),
    ],
)
def test_what_differs_is_named_on_both(config: RunConfig, marks: dict[str, Any], step: int, words: str) -> None:
    said = on_two_machines(
        lambda agree: alike.check_all_alike(FIRST, MARKS, 0, agree), lambda agree: alike.check_all_alike(config, marks, step, agree)
    )
    assert said[0] == said[1] and words in said[0] and bool(said[0]) == bool(words)


def test_versions_with_other_options_do_not_wait_for_each_other() -> None:
    named: list[list[str]] = []
    said = on_two_machines(*(lambda agree, n=n: named.append(alike.differing({f"option {i}": 1 for i in range(n)}, agree)) for n in (3, 5)))
    assert said == ["", ""] and named == [["app"], ["app"]]


def test_a_single_process_agrees_with_itself() -> None:
    alike.check_all_alike(FIRST, MARKS, 3, int)
