"""`app.py data convert FILE --out X.jsonl`: any known format as messages, one conversation a line. `data formats` lists them."""

from __future__ import annotations

import argparse
import codecs
import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qlora_ui.base.errors import DataError
from qlora_ui.base.units import MIB
from qlora_ui.catalog.formats import FORMATS
from qlora_ui.cli.lint import add_source_arguments, source_settings
from qlora_ui.data.fixes import write_rows
from qlora_ui.data.load import load_anyway
from qlora_ui.data.rows import Conversation
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

HELP = "convert a dataset to JSONL messages, or list the formats that are understood"
_BLOCK = MIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two words: convert and formats."""
    words = parser.add_subparsers(dest="word", metavar="convert|formats", required=True)
    convert = words.add_parser("convert", help="write a dataset as messages, one conversation a line", allow_abbrev=False)
    add_source_arguments(convert)
    convert.add_argument("--out", required=True, metavar="X.jsonl", help="the new file; never an existing one")
    convert.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be used instead of stopping")
    convert.add_argument("--encoding", metavar="NAME", help="encoding of the file where it is not UTF-8, such as utf-16 or cp1252")
    formats = words.add_parser("formats", help="the formats, each with example rows", allow_abbrev=False)
    for word in (convert, formats):
        # Also after the word, where people write it; SUPPRESS keeps what stood before it.
        word.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one line of JSON")
        word.add_argument("--workspace", metavar="DIR", default=argparse.SUPPRESS, help="folder of runs, models and datasets")


def run(arguments: argparse.Namespace) -> int:
    """Convert or list."""
    return _formats(arguments) if arguments.word == "formats" else _convert(arguments)


def _formats(arguments: argparse.Namespace) -> int:
    if arguments.json:
        values = [{"name": form.name, "label": form.label, "about": form.about, "examples": form.examples} for form in FORMATS]
        print(json.dumps(values, ensure_ascii=False))
        return 0
    for form in FORMATS:
        print(f"{form.name}: {form.about}")
        for example in form.examples:
            print(f"    {json.dumps(example, ensure_ascii=False)}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    workspace = Workspace.at(arguments.workspace)
    out = Path(arguments.out).expanduser()
    with _as_utf8(arguments, workspace) as path:
        arguments.data = path
        config = RunConfig().changed(source_settings(arguments))
        loaded = load_anyway(config.data, workspace)
        unusable = sum(source.num_seen - source.num_rows for source in loaded.report.sources)
        if unusable and not arguments.skip_bad:
            loaded.report.raise_if_not_trainable()
        loaded.report.raise_if_unread()
        num_rows = _write(loaded.conversations, out)
    result = {"out": str(out), "format": loaded.report.format, "rows": num_rows, "left_out": unusable}
    if arguments.json:
        print(json.dumps({**result, "content_hash": loaded.report.content_hash}, ensure_ascii=False))
    else:
        left_out = f"; {unusable:,} rows were left out" if unusable else ""
        print(f"{out}: {num_rows:,} rows, from {loaded.report.format}{left_out}.")
    return 0


def _write(conversations: Iterable[Conversation], out: Path) -> int:
    if out.exists():
        raise DataError("The file is there already.", where=str(out), fix="Give another name after --out.", code="DATA-EXISTS")
    try:
        return write_rows(out, conversations)
    except OSError as error:
        raise DataError(
            "The file cannot be written.", where=str(out), why=error.strerror or str(error), fix="Give another place.", code="DATA-ACCESS"
        ) from None


@contextmanager
def _as_utf8(arguments: argparse.Namespace, workspace: Workspace) -> Iterator[str]:
    """The file, or a copy of it in UTF-8 that is removed afterwards."""
    if not arguments.encoding:
        yield arguments.data
        return
    source = Path(arguments.data).expanduser()
    try:
        codecs.lookup(arguments.encoding)
    except LookupError:
        raise DataError(f"There is no encoding “{arguments.encoding[:40]}”.", where="--encoding", fix="Such as utf-16, cp1252.") from None
    copy = workspace.temp / f"{secrets.token_hex(4)}-{source.name}"
    try:
        with source.open(encoding=arguments.encoding, newline="") as file, copy.open("w", encoding="utf-8", newline="") as target:
            while block := file.read(_BLOCK):
                target.write(block)
        yield str(copy)
    except OSError as error:
        raise DataError("The file cannot be opened.", where=source.name, why=error.strerror or "", fix="Check the path.") from None
    except UnicodeError as error:
        raise DataError(
            f"The file is not in {arguments.encoding}.",
            where=source.name,
            why=str(error)[:200],
            fix="Try another encoding.",
            code="DATA-UTF8",
        ) from None
    finally:
        copy.unlink(missing_ok=True)
