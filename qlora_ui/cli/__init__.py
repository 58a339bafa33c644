"""The command line: every word has `--json` and `--workspace`; without a word the page opens."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TextIO

from qlora_ui import __version__
from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.files import disk_in_words

COMMANDS = (
    "ui",
    "train",
    "estimate",
    "fit",
    "lint",
    "data",
    "chat",
    "evaluate",
    "export",
    "push",
    "serve",
    "script",
    "runs",
    "options",
    "doctor",
)

INTERRUPTED = 130
"""Exit code of what Ctrl-C ended, as shells give it."""
AFTERMATH_S = 60.0
"""How long after Ctrl-C an exception may still come of it; imports go on for a while on a busy machine."""

# Read by the libraries when they are imported: no telemetry, no progress bars into our output, no advisory noise.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


class Command(Protocol):
    """A file of this package: one word of the command line."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, arguments: argparse.Namespace) -> int: ...


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 it failed, 2 the input was wrong, 130 interrupted."""
    os.environ.update(QUIET)
    # Threads that wait in a busy loop starve each other where other programs need the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # what is no text in the terminal's encoding; it would come as half letters
    given = list(sys.argv[1:] if words is None else words)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "ui")
    wants_json = "--json" in given
    with _interrupts() as interrupts:
        try:
            code = _run(given)
            if sys.stdout is not None:
                sys.stdout.flush()  # here it can still be told where that fails
            return code
        except QloraUiError as error:
            print_error(error, as_json=wants_json)
            return 2
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            return 1  # the reader (head, less) left
        except Exception as error:
            if interrupts and time.monotonic() - interrupts[-1] < AFTERMATH_S:
                return INTERRUPTED
            told = disk_in_words(error)
            if told is None:
                raise
            print_error(told, as_json=wants_json)
            return 2
        finally:
            _let_go_of_the_unsaid()


def _run(given: list[str]) -> int:
    arguments, unknown = _parser(given[0]).parse_known_args(given)
    if unknown and not _are_settings(arguments, unknown):
        raise _unknown_words(arguments.command, unknown)
    return _load(arguments.command).run(arguments)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[float]]:
    """When Ctrl-C was pressed: inside an import of torch's it may come out as any other exception (seen: ModuleNotFoundError)."""
    noted: list[float] = []

    def note(number: int, frame: Any) -> None:
        noted.append(time.monotonic())
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _are_settings(arguments: argparse.Namespace, unknown: list[str]) -> bool:
    """Hand misspelt settings (`--lora.rnk 8`) to a word that takes settings, which names them with everything else that is wrong."""
    if not hasattr(arguments, "preset"):
        return False
    rest = list(unknown)
    while rest:
        path, sign, value = rest.pop(0).partition("=")
        if not path.startswith("--") or "." not in path:
            return False
        if not sign and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        setattr(arguments, path.removeprefix("--"), value)
    return True


def _unknown_words(word: str, unknown: list[str]) -> QloraUiError:
    fix = f"“app.py {word} --help” lists what there is."
    if late := next((name for name in unknown if name in COMMANDS), None):
        fix = f"“{late}” comes first: app.py {late} …"
    return QloraUiError(f"Unrecognized arguments: {' '.join(unknown)}", fix=fix, where="command line", code="usage")


def _let_go_of_the_unsaid() -> None:
    """What nobody takes (a reader that left, a full disk) would fail once more when Python ends, which makes 120 of every exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)


def silence(stream: TextIO) -> None:
    """Let whatever is written to the stream from now on, by anybody in this process, vanish: nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_error(error: QloraUiError, *, as_json: bool) -> None:
    """All problems of an error: one JSON line on stdout, or sentences on stderr, which also get what stdout does not take."""
    if as_json:
        try:
            print(json.dumps({"error": error.as_dict()}, ensure_ascii=False), flush=True)
            return
        except OSError:
            silence(sys.stdout)
    with contextlib.suppress(OSError):
        for problem in error.problems:
            print(problem.sentence(), file=sys.stderr, flush=True)


def text_word(word: str) -> str:
    """A word that is kept or read by a model, so that it must be text; what a terminal passes on may be bytes of any encoding."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"“{word}” is no text in UTF-8") from None
    return word


class _Parser(argparse.ArgumentParser):
    """Wrong words are a QloraUiError, so that they take the same road as every other wrong input."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise QloraUiError(
            message[:1].upper() + message[1:], fix=f"“{self.prog} --help” lists what there is.", where="command line", code="usage"
        )


def _parser(word: str) -> argparse.ArgumentParser:
    """The parser with the arguments of one word only: building all of them would cost start-up time."""
    parser = _Parser(prog="app.py", description="Fine-tune a language model with QLoRA and talk to the result.")
    parser.add_argument("--version", action="version", version=f"QLoRA UI {__version__}")
    words = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        wanted = name == word
        command = _load(name) if wanted or word in ("-h", "--help") else None
        sub = words.add_parser(
            name, help=command.HELP if command else None, description=command.HELP if command else None, allow_abbrev=False
        )
        if command is not None and wanted:
            sub.add_argument("--json", action="store_true", help="one line of JSON for each result, nothing else on stdout")
            sub.add_argument("--workspace", metavar="DIR", help="folder of runs, models and datasets (default: your user data folder)")
            command.add_arguments(sub)
    return parser


def _load(name: str) -> Command:
    module: Command = importlib.import_module(f"qlora_ui.cli.{name}")
    return module
