"""`app.py lint FILE|ID`: what a model would learn from a dataset, before anything is trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qlora_ui.base.errors import QloraUiError
from qlora_ui.catalog.formats import FORMATS
from qlora_ui.data.load import inspect
from qlora_ui.data.report import DataReport
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

HELP = "check a dataset: format, lengths in tokens, what is cut, doubles, secrets; a verdict"
_VERDICTS = {"ready": "Ready to train.", "look": "Can be trained; look at this first.", "not-trainable": "Cannot be trained like this."}
_SIGNS = {"error": "✗", "warning": "!", "note": "·"}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which rows of which dataset, and how they are read."""
    parser.add_argument("data", metavar="FILE|ID", help="a file, OWNER/NAME on the Hub, or builtin:NAME")
    parser.add_argument("--format", default="auto", help=", ".join(("auto", *(form.name for form in FORMATS))))
    parser.add_argument(
        "--map", action="append", default=[], metavar="ROLE=COLUMN", help="user, assistant or system, and the column that holds it"
    )
    parser.add_argument("--subset", metavar="NAME", help="configuration of a Hub dataset")
    parser.add_argument("--split", default="train", metavar="NAME", help="split of a Hub dataset (train)")
    parser.add_argument("--rows", default="", metavar="SLICE", help="“first 500”, “100-200” or “20 %%”")


def source_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The data settings that the source arguments mean, by option path."""
    mapping = {}
    for pair in arguments.map:
        role, sign, column = pair.partition("=")
        if not sign or not role or not column:
            raise QloraUiError(
                f"“{pair}” is no mapping.", fix="Write --map user=question --map assistant=answer.", where="--map", code="usage"
            )
        mapping[role] = column
    source = {"id": arguments.data, "config": arguments.subset, "split": arguments.split, "rows": arguments.rows}
    return {"data.sources": [source], "data.format": "columns" if mapping else arguments.format, "data.mapping": mapping}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The dataset, and with a model the counts in its tokens."""
    add_source_arguments(parser)
    parser.add_argument("--model", metavar="M", help="count in tokens of this model (a folder, a Hub id, builtin:…)")
    parser.add_argument("--template", default="auto", help="chat template for a base model that has none")
    parser.add_argument("--max-length", type=int, metavar="N", help="longest conversation in tokens")


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 0 whatever the verdict, for the check was done."""
    workspace = Workspace.at(arguments.workspace)
    values = source_settings(arguments)
    if arguments.max_length is not None:
        values["data.max_length"] = arguments.max_length
    if arguments.model:
        values |= {"model.id": arguments.model, "model.template": arguments.template}
    config = RunConfig().changed(values)
    report = inspect(config.data, workspace)
    if arguments.model:
        report = engine_object("lens:Lens")(workspace, may_download=True).report(config)
    if arguments.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _print(report, has_model=bool(arguments.model))
    return 0


def _print(report: DataReport, *, has_model: bool) -> None:
    names = ", ".join(Path(source.name).name for source in report.sources)
    form = "several formats" if report.format == "mixed" else f"the format “{report.format}”"
    print(f"{names}: {report.num_rows:,} rows in {form}. {report.why}")
    if report.tokens:
        tokens = report.tokens
        print(
            f"Tokens: {tokens['median']} at the middle, {tokens['p95']} at 95 %, longest {tokens['longest']}; "
            f"{100 * tokens['trained_share']:.0f} % of them are learned. Proposed longest conversation: {tokens['proposed_max_length']}."
        )
    elif not has_model:
        print("Add --model to count in tokens.")
    for finding in report.findings:
        rows = f" Rows {', '.join(map(str, finding.rows[:5]))}{' …' if finding.count > 5 else ''}." if finding.rows else ""
        of = f"{finding.source}: " if len(report.sources) > 1 and finding.source else ""
        print(f" {_SIGNS[finding.severity]} {of}{finding.what}{rows} {finding.why} {finding.fix}".rstrip() + f"  [{finding.code}]")
    print(_VERDICTS[report.verdict])
