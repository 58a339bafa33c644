"""`app.py push`: upload an export of a run to the Hub."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from qlora_ui.base.units import format_bytes
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.workspace import Workspace

HELP = "upload a run's adapter or merged model to the Hub, private unless told otherwise"
FORMS = ("adapter", "merged-dequantized", "merged-original")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, as what, where to."""
    parser.add_argument("--run", metavar="RUN", default="latest", help="the run; “latest” is the newest (default)")
    parser.add_argument("--format", choices=FORMS, default="adapter", help="what is uploaded (default adapter)")
    parser.add_argument("--to", metavar="OWNER/NAME", required=True, help="the model's name on the Hub")
    parser.add_argument("--public", action="store_true", help="let everybody see it")


def run(arguments: argparse.Namespace) -> int:
    """Export where that was not done yet, upload, and say where it is."""
    workspace = Workspace.at(arguments.workspace)
    chosen = find_run(workspace, arguments.run)

    from qlora_ui.engine.exports.push import can_push_or_fail, push_folder

    can_push_or_fail(arguments.to)
    adapter_folder(ChatTarget(run_id=chosen.id, checkpoint=chosen.stand_in), workspace)  # to refuse before torch is imported

    from qlora_ui.engine.exports.export import export_run

    result = export_run(chosen, arguments.format, workspace, num_prompts=0)
    if not arguments.json:
        print(f"Uploading {format_bytes(result.size_bytes)} to {arguments.to}", file=sys.stderr, flush=True)
    pushed = push_folder(result.path, arguments.to, workspace, public=arguments.public)
    print(json.dumps(asdict(pushed)) if arguments.json else f"{pushed.url} ({'private' if pushed.is_private else 'public'})")
    return 0
