"""Charts of runs: our own SVG inside gr.HTML, fed with what is new since the browser last asked.

Gradio's own plots redraw everything at every point and freeze a page with a few thousand of them. Here a beat brings a version and
may bring the end of the curves; a browser that it does not reach asks `curves` for what was added (see static/chart.js).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import gradio as gr

from qlora_ui.ui.action import WHEN_TOLD
from qlora_ui.ui.markup import escape


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: `key` names it in what `curves` answers with."""

    key: str
    label: str
    style: str = "line"
    """`line` or `points`."""
    colour: str = "train"
    """train, eval, memory, predicted: a `--line-` token; charts of several runs take one colour a run instead."""
    smooth: bool = False
    """Drawn faint as it is and strong as its moving average."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A horizontal dashed line: a prediction."""

    key: str
    label: str
    colour: str = "predicted"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart."""

    id: str
    title: str
    series: tuple[Series, ...]
    x: str = "step"
    """step or time (seconds since the start)."""
    format: str = "number"
    """loss, number, rate or bytes."""
    size: str = "small"
    """hero, side or small."""
    rules: tuple[Rule, ...] = field(default=())
    log: bool = False
    """Whether the log switch is for this chart."""
    zero: bool = False
    """Whether the axis starts at zero."""
    marks: bool = False
    """Whether checkpoints are marked on the axis."""
    empty: str = ""
    """What stands here before the first point."""
    note: str = ""
    """What the curve is, in a few plain words beside the title."""


LOSS = Panel(
    "loss",
    "Loss",
    (Series("loss", "Training", smooth=True), Series("eval", "Held-back rows", style="points", colour="eval")),
    format="loss",
    size="hero",
    log=True,
    marks=True,
    empty="The loss draws itself here from the first step on. It should fall.",
    note="how far its words are from those of the rows; should fall",
)
LOSS_COMPARED = replace(LOSS, size="wide", marks=False, empty="Choose two runs that have learned something.")
MEMORY = Panel(
    "memory",
    "Memory",
    (Series("memory", "Measured", colour="memory"),),
    x="time",
    format="bytes",
    size="side",
    rules=(Rule("predicted", "Predicted"),),
    zero=True,
    empty="Measured memory against the predicted line.",
)
LEARNING_RATE = Panel(
    "rate",
    "Learning rate",
    (Series("rate", "Learning rate"),),
    format="rate",
    zero=True,
    empty="Planned steps.",
    note="size of each correction",
)
GRADIENT = Panel(
    "gradient",
    "Gradient norm",
    (Series("gradient", "Gradient norm", smooth=True),),
    log=True,
    empty="Measured at each step.",
    note="how hard the rows pull",
)
SPEED = Panel("speed", "Tokens per second", (Series("speed", "Tokens/s", smooth=True),), zero=True, empty="Measured speed.")


def charts(elem_id: str, panels: Sequence[Panel], curves: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> gr.HTML:
    """Charts that stand together and share their tools; let `Page.live` give the component `chart_value(...)` to draw runs.

    `curves({"runs": [id, …], "cursors": [cursor or None, …]})` answers with what is new in each run (views/curves.py).
    """

    def ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
        return curves(asked)

    ask.__name__ = "curves"
    spec = {"id": elem_id, "panels": [asdict(panel) for panel in panels]}
    return gr.HTML(
        "",
        html_template=f'<div class="q-charts" data-spec="{escape(json.dumps(spec))}"></div>',
        js_on_load=f"mountChart({json.dumps(elem_id)}, element, server);",
        server_functions=[ask],
        elem_id=elem_id,
        elem_classes=WHEN_TOLD,
        apply_default_css=False,
    )


def chart_value(run_ids: Sequence[str], version: str, names: Sequence[str] = (), tails: Sequence[dict[str, Any]] = ()) -> Any:
    """Which runs to draw; `version` changes when there is something new in one of them, `tails` are the ends of curves."""
    return {"runs": list(run_ids), "names": list(names), "version": version, "tails": list(tails)}
