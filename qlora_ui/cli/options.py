"""`app.py options`: every option with its path, default, bounds and help."""

from __future__ import annotations

import argparse
import json

from qlora_ui.base.errors import QloraUiError
from qlora_ui.settings.reference import LISTS
from qlora_ui.settings.run_config import option_by_path

HELP = "every setting with its path, default, bounds and meaning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A part of a path narrows the list."""
    parser.add_argument("filter", nargs="?", default="", help="only paths that hold this text")


def run(arguments: argparse.Namespace) -> int:
    """Print the options."""
    chosen = [option for path, option in option_by_path().items() if arguments.filter in path]
    if not chosen:
        raise QloraUiError(
            f"No option has “{arguments.filter}” in its path.", fix="“app.py options” lists all of them.", code="unknown-option"
        )
    if arguments.json:
        print(json.dumps([option.as_dict() for option in chosen], ensure_ascii=False))
        return 0
    for option in chosen:
        row = option.as_dict()
        bounds = ", ".join(map(str, row["choices"])) or (f"{row['minimum']} to {row['maximum']}" if row["minimum"] is not None else "")
        print(f"--{option.path}  (default {row['default']}{'; ' + bounds if bounds else ''})")
        print(f"    {option.meta.label}{f' ({option.meta.term})' if option.meta.term else ''}: {option.meta.help}")
    if any(isinstance(option.default, tuple | dict) for option in chosen):
        print(LISTS)
    return 0
