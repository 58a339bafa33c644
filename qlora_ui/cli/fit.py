"""`app.py fit`: the changes that make a run fit a device, or use the memory it leaves free."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qlora_ui.cli.config_flags import add_config_flags, config_from, table, write_settings
from qlora_ui.cli.estimate import add_device_flag, as_values, data_shape_of, device_of, facts_of
from qlora_ui.estimate.advice import Advice, make_it_fit, use_the_memory
from qlora_ui.runs.workspace import Workspace

HELP = "make a run fit the memory there is, at the same effective batch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings, a device, the direction, and where to write the result."""
    add_config_flags(parser)
    add_device_flag(parser)
    parser.add_argument("--use", action="store_true", help="the reverse: use the memory that is left free")
    parser.add_argument("--write", metavar="FILE", help="write the changed settings as YAML")


def run(arguments: argparse.Namespace) -> int:
    """Print the changes; 0 where the run then fits, 1 where nothing is enough."""
    workspace = Workspace.to_read(arguments.workspace)
    config = config_from(arguments, workspace)
    facts, device = facts_of(config, workspace), device_of(arguments, config, workspace)
    solve = use_the_memory if arguments.use else make_it_fit
    advice = solve(facts, config, device, data_shape_of(config, workspace))
    changed = config.changed({path: new for path, (_, new) in advice.changes.items()})
    if arguments.write:
        write_settings(Path(arguments.write), changed, "--write")
    if arguments.json:
        values = {**as_values(facts, changed, device, advice.after, None), **_values(advice)}
        print(json.dumps(values, ensure_ascii=False))
    else:
        print(table([(path, old, "→", new) for path, (old, new) in advice.changes.items()]) or "Nothing to change.")
        print(" ".join(advice.sentences))
    return 0 if advice.fits else 1


def _values(advice: Advice) -> dict[str, Any]:
    return {
        "changes": {path: [old, new] for path, (old, new) in advice.changes.items()},
        "before_bytes": advice.before.total_bytes,
        "after_bytes": advice.after.total_bytes,
        "fits": advice.fits,
        "share_of_rows_cut": advice.share_of_rows_cut,
        "sentences": list(advice.sentences),
    }
