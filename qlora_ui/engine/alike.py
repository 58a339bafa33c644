"""Whether the processes of a run work with the same settings, rows and base, from the same step: each machine has files of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from qlora_ui.base.errors import RunError
from qlora_ui.settings.migrate import VERSION
from qlora_ui.settings.run_config import RunConfig, label_of

OWN = (
    *("model.id", "model.revision", "data.sources", "lora.start_from", "output.name", "output.notes", "output.tags"),
    *("launch.device", "launch.machine_rank", "launch.main_host", "launch.main_port"),
)
"""Settings that a machine has for itself: where its files lie and what it is called. What is in the files is compared."""
_ROWS, _BASE, _APP = "rows", "base", "app"


def check_all_alike(config: RunConfig, marks: Mapping[str, Any], step: int, agree: Callable[[int], int]) -> None:
    """Raise RunError in every process where they differ in what must be the same; `agree` gives the highest of all numbers.

    `marks` are those of rows and base, `step` is where they begin. Else each would learn something of its own, and wait at another step
    for the others.
    """
    _check_settings(config, marks, agree)
    _check_all_begin_at(step, agree)


def _check_settings(config: RunConfig, marks: Mapping[str, Any], agree: Callable[[int], int]) -> None:
    settings = {f"{name}.{key}": value for name, section in config.model_dump(mode="json").items() for key, value in section.items()}
    values = {path: value for path, value in settings.items() if path not in OWN}
    values |= {_ROWS: marks["rows_sha256"], _BASE: marks["weights_mark"]}
    names = differing(values, agree)
    if not names:
        return
    paths = [name for name in names if name in settings]
    if names == [_APP]:
        what, fix = "the same version of the app", "Update the app on all machines"
    elif paths:
        what = f"the same settings: {', '.join(f'“{label_of(path)}”' for path in paths)}"
        fix = "Start the run with equal settings on all machines, but for each one's number"
    elif _ROWS in names:
        what, fix = "the same rows", "Copy the data files from the first machine to the others"
    else:
        what, fix = "the same base model", "Copy the model's folder from the first machine to the others"
    raise RunError(
        f"The machines of this run do not have {what}.", why="They can only learn the same together", fix=fix, code="machines-differ"
    )


def _check_all_begin_at(step: int, agree: Callable[[int], int]) -> None:
    first, last = -agree(-step), agree(step)
    if first != last:
        raise RunError(
            f"The machines do not continue from the same step: one from {first}, another from {last}.",
            why="A run's checkpoints are kept on its first machine alone",
            fix="Copy the folder checkpoints of the run from the first machine into the run's folder on this one, then continue on all",
            code="resume-machines",
        )


def differing(values: Mapping[str, Any], agree: Callable[[int], int]) -> list[str]:
    """The names of values that are not the same in all processes; `app` alone where they do not even have the same names."""
    if not _differs([VERSION, values], agree):
        return []
    # All processes go the same way here: they would wait for each other without an end.
    if _differs([VERSION, list(values)], agree):
        return [_APP]
    return [name for name, value in values.items() if _differs(value, agree)]


def _differs(value: Any, agree: Callable[[int], int]) -> bool:
    digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
    mark = int.from_bytes(digest[:7], "big")
    return -agree(-mark) != agree(mark)
