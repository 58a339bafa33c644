"""`app.py export`: take a run's adapter away."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from qlora_ui.base.progress import never
from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.exports import EXPORT_FORMS, SCRIPTS
from qlora_ui.cli import script
from qlora_ui.runs.chat_target import ChatTarget, adapter_folder
from qlora_ui.runs.registry import find_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.under_way import export_mark, marked
from qlora_ui.runs.workspace import Workspace

HELP = "take a run away: adapter, merged model, GGUF, Ollama folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, as what, where to."""
    parser.add_argument("--run", metavar="RUN", default="latest", help="the run; “latest” is the newest (default)")
    forms = [*(form.name for form in EXPORT_FORMS), *SCRIPTS]
    parser.add_argument("--format", metavar="FORMAT", choices=forms, required=True, help=", ".join(forms))
    parser.add_argument("--out", metavar="DIR", help="a new folder (default: the run's exports/FORMAT)")
    parser.add_argument("--check", type=_count, metavar="N", default=20, help="questions of the check at the end, 0 for none (default 20)")
    parser.add_argument("--plan", action="store_true", help="only say what it would take")


def _count(text: str) -> int:
    """How many questions; argparse puts the refusal into its own sentence."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"“{text}” is no number of questions, give 0 or more")


def run(arguments: argparse.Namespace) -> int:
    """Export, check, and say where it is."""
    workspace = Workspace.at(arguments.workspace)
    chosen = find_run(workspace, arguments.run)
    if arguments.format in SCRIPTS:
        return script.run(_as_script(arguments, chosen))
    adapter_folder(ChatTarget(run_id=chosen.id, checkpoint=chosen.stand_in), workspace)  # to refuse before torch is imported

    from qlora_ui.engine.exports.export import export_run, plan

    if arguments.plan:
        needs = plan(chosen, arguments.format, workspace)
        row = {
            "format": arguments.format,
            "size_bytes": needs.size_bytes,
            "disk_bytes": needs.disk_bytes,
            "memory_bytes": needs.memory_bytes,
        }
        space = f"{format_bytes(needs.disk_bytes)} of disk and {format_bytes(needs.memory_bytes)} of memory"
        words = f"{format_bytes(needs.size_bytes)}; while it is made {space}"
        print(json.dumps(row) if arguments.json else words)
        return 0
    said = ""

    def tell(what: str, share: float | None) -> None:
        nonlocal said
        if what != said and not arguments.json:
            print(what, file=sys.stderr, flush=True)
        said = what

    out = Path(arguments.out) if arguments.out else None
    # One that is made elsewhere is none of the run's.
    with nullcontext() if out else marked(export_mark(chosen, arguments.format), never):
        result = export_run(chosen, arguments.format, workspace, out, num_prompts=arguments.check, on_progress=tell)
    if arguments.json:
        print(json.dumps(result.as_dict(), ensure_ascii=False), flush=True)
    else:
        print(f"{result.path} ({format_bytes(result.size_bytes)}). {result.note}")
    return 0


def _as_script(arguments: argparse.Namespace, chosen: RunDir) -> argparse.Namespace:
    """The same wish in the words of `script`; like the other forms, it replaces an earlier one in the run's own folder only."""
    parser = argparse.ArgumentParser()
    script.add_arguments(parser)
    out = arguments.out or str(chosen.exports / arguments.format)
    words = parser.parse_args(["--run", chosen.id, "--out", out, "--format", arguments.format])
    given = {"json": arguments.json, "workspace": arguments.workspace, "replaces": not arguments.out}
    return argparse.Namespace(**{**vars(words), **given})
