"""`app.py evaluate`: the quality receipt of a run."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.catalog.metrics import MOST_ROWS
from qlora_ui.cli.config_flags import table
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace

HELP = "what 4-bit cost and what the adapter gained, on held-back rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, and how much of it is looked at."""
    parser.add_argument("--run", metavar="RUN", required=True, help="the run; “latest” is the newest")
    parser.add_argument("--checkpoint", metavar="NAME", help="checkpoint-N (default: the finished adapter, else the newest)")
    parser.add_argument("--max-rows", type=int, default=MOST_ROWS, help=f"held-back rows looked at (default {MOST_ROWS})")
    parser.add_argument("--answers", type=int, help="held-back questions answered by base and adapter (default 16; 64 of labels)")
    parser.add_argument("--max-tokens", type=int, help="longest answer (default: what the row's own answer needs, up to 512)")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the receipt."""
    if arguments.max_rows < 1 or (arguments.answers or 0) < 0 or (arguments.max_tokens is not None and arguments.max_tokens < 1):
        raise QloraUiError(
            "Counts must be positive.",
            fix="Give 1 or more; --answers 0 asks no questions.",
            where="--max-rows, --answers, --max-tokens",
            code="usage",
        )
    workspace = Workspace.at(arguments.workspace)
    found = find_run(workspace, arguments.run)
    adapter_folder(
        ChatTarget(run_id=found.id, checkpoint=arguments.checkpoint or found.stand_in), workspace
    )  # to refuse before torch comes

    from qlora_ui.engine.evaluate import evaluate_run
    from qlora_ui.engine.evaluate_options import EvaluateOptions

    options = EvaluateOptions(arguments.max_rows, arguments.answers, arguments.max_tokens)

    def tell(what: str, share: float | None) -> None:
        if not arguments.json:
            print(f"{'' if share is None else f'{share:4.0%} '}{what}", file=sys.stderr)

    result = evaluate_run(found.id, workspace, Card(), options, checkpoint=arguments.checkpoint, on_progress=tell)
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        print(_text(result))
    return 0


def _text(result: dict[str, Any]) -> str:
    rows: list[list[object]] = [["", "loss", "perplexity", "token accuracy", "same as the chat", "logits differ by"]]
    same = result["agreement"].get("adapter-4bit", {})
    for score in result["scores"]:
        if "skipped" in score:
            rows.append([score["title"], "skipped:", score["skipped"], "", "", ""])
            continue
        difference = result["logit_difference"].get(score["variant"])
        rows.append(
            [
                score["title"],
                f"{score['loss']:.4f}",
                f"{score['perplexity']:.2f}",
                f"{score['accuracy']:.1%}",
                f"{same[score['variant']]:.1%}" if score["variant"] in same else "",
                f"{difference['mean']:.2g}, at most {difference['max']:.2g}" if difference else "",
            ]
        )
    lines = [table(rows), ""]
    if result["checkpoint"]:
        lines.append(f"Of {result['checkpoint']}, not of a finished adapter.")
    if result["warning"]:
        lines.append(result["warning"])
    for task in result["tasks"]:
        lines.append(f"{task['metric']}: base {task['base']['value']:.0%}, adapter {task['adapter']['value']:.0%}")
    return "\n".join([*lines, result["verdict"]["text"]])
