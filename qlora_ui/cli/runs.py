"""`app.py runs`: the runs of a workspace, and what can be done to one."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.units import format_bytes, format_duration
from qlora_ui.cli import text_word
from qlora_ui.cli.config_flags import table
from qlora_ui.runs.deleted import Deleted, deleted, empty_trash, put_back
from qlora_ui.runs.ending import config_or_none
from qlora_ui.runs.events import Failed
from qlora_ui.runs.kept_models import refuse_while_run_is_needed
from qlora_ui.runs.launcher import ask
from qlora_ui.runs.listing import RunList, RunRow, compare, rename, row_of
from qlora_ui.runs.read import RunView, read_run
from qlora_ui.runs.registry import delete_checkpoints, delete_run, find_run, unqueue_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.workspace import Ownership, Workspace

HELP = "list runs; show, compare, rename, delete (or its checkpoints), stop, pause or save one; list the trash, put back, empty it"
_REQUESTS = {"stop": Request.STOP, "stop-now": Request.STOP_NOW, "pause": Request.PAUSE, "save": Request.SAVE_NOW}
_TAKE_MORE = ("compare", "rename", "tag")
_DELETING = ("delete", "delete-checkpoints", "trash", "put-back", "empty-trash")
_READING = ("list", "show", "compare", "trash", "resume-info")
_WORDS = ("list", "show", "compare", "rename", "tag", *_DELETING, "resume-info", *_REQUESTS)
_UNDONE = "“runs empty-trash” frees the space, “runs put-back” undoes it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A word and a run; without both, the list."""
    parser.add_argument("word", nargs="?", default="list", choices=_WORDS, help="what to do (default: list)")
    which = "id of a run (default: the newest); for put-back a name that “trash” lists (default: the last deleted)"
    parser.add_argument("run", nargs="?", default="latest", metavar="RUN", help=which)
    parser.add_argument("rest", nargs="*", type=text_word, metavar="WORD", help="the new name, the tags, or the other runs to compare with")


def run(arguments: argparse.Namespace) -> int:
    """Do it and print what came of it."""
    _refuse_what_would_be_ignored(arguments)
    workspace = (Workspace.to_read if arguments.word in _READING else Workspace.at)(arguments.workspace)
    if arguments.word == "list":
        return _list(RunList(workspace).rows(), arguments.json)
    if arguments.word == "empty-trash":
        number, size = empty_trash(workspace)
        message = f"{format_bytes(size)} are free again; {number:,} deleted item{'s are' if number != 1 else ' is'} gone for good."
        _say({"runs": number, "bytes": size, "message": message if number else "The trash is empty."}, arguments.json)
        return 0
    if arguments.word == "trash":
        return _trash(deleted(workspace), arguments.json)
    if arguments.word == "put-back":
        named = (one.folder for one in deleted(workspace) if arguments.run in ("latest", one.folder) or one.is_run(arguments.run))
        back = put_back(workspace, next(named, arguments.run))
        _say({"run_id": back.run_id or None, "kind": back.kind, "message": f"“{back.name}” is in {back.place} again."}, arguments.json)
        return 0
    target = find_run(workspace, arguments.run)
    if arguments.word in _REQUESTS:
        _say({"run_id": target.id, "message": _asked(workspace, target, _REQUESTS[arguments.word])}, arguments.json)
    elif arguments.word == "show":
        return _show(read_run(target), arguments.json)
    elif arguments.word == "compare":
        return _compare([target, *(find_run(workspace, name) for name in arguments.rest)], arguments.json)
    elif arguments.word == "rename":
        rename(target, " ".join(arguments.rest))
        _say({"run_id": target.id, "message": f"It is called “{read_run(target).name}” now."}, arguments.json)
    elif arguments.word == "tag":
        target.write_about(tags=list(arguments.rest))
        _say({"run_id": target.id, "message": f"Tags: {', '.join(arguments.rest) or 'none'}."}, arguments.json)
    elif arguments.word == "delete":
        rows = RunList(workspace).rows()
        refuse_while_run_is_needed(workspace, target.id, rows, lambda run_id: config_or_none(find_run(workspace, run_id)))
        trash = delete_run(workspace, target)
        _say({"run_id": target.id, "message": f"Moved to {trash}; {_UNDONE}"}, arguments.json)
    elif arguments.word == "delete-checkpoints":
        trash = delete_checkpoints(workspace, target)
        _say({"run_id": target.id, "message": f"Moved to {trash}; its adapter stays. {_UNDONE}"}, arguments.json)
    else:
        _say(_resume_info(read_run(target)), arguments.json)
    return 0


def _asked(workspace: Workspace, target: RunDir, request: Request) -> str:
    """The answer to what is asked of a run; one that waits is taken out of the queue where no app has it."""
    if request is Request.SAVE_NOW or read_run(target).status is not Status.QUEUED or target.owner_is_alive():
        return ask(target, request)
    with Ownership(workspace):
        unqueue_run(target)
    return "Taken out of the queue."


def _refuse_what_would_be_ignored(arguments: argparse.Namespace) -> None:
    """Raise QloraUiError for more names than the word takes: “runs delete A B” would delete the first and look as if it had both."""
    takes_none = arguments.word in ("list", "trash", "empty-trash")
    extra = [] if arguments.word in _TAKE_MORE else arguments.rest
    if takes_none and arguments.run != "latest":
        extra = [arguments.run, *extra]
    if extra:
        takes = "no run" if takes_none else "one run"
        raise QloraUiError(
            f"“runs {arguments.word}” takes {takes}, and {', '.join(extra)} would be ignored.",
            fix="Leave it out" if takes_none else "Say it once for each run",
            where="command line",
            code="usage",
        )


def _list(rows: list[RunRow], as_json: bool) -> int:
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], ensure_ascii=False))
        return 0
    head = ("id", "status", "steps", "loss", "memory", "time", "name")
    print(table([head, *(_cells(row) for row in rows)]) if rows else "There is no run yet.")
    return 0


def _trash(lies: tuple[Deleted, ...], as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(one) for one in lies], ensure_ascii=False))
        return 0
    rows = [(one.folder, one.kind, _cell("created", one.at), format_bytes(one.num_bytes), one.name) for one in lies]
    print(table([("what “put-back” takes", "kind", "deleted", "size", "name"), *rows]) if rows else "The trash is empty.")
    return 0


def _cells(row: RunRow) -> tuple[str, ...]:
    return (
        row.id,
        row.status.value,
        f"{row.step}/{row.num_steps}" if row.num_steps else "",
        f"{row.final_loss:.4f}" if row.final_loss is not None else "",
        format_bytes(row.peak_bytes) if row.peak_bytes else "",
        format_duration(row.elapsed_s) if row.elapsed_s else "",
        " – ".join(part for part in (row.name if row.name != row.id else "", row.problem) if part),
    )


def _show(view: RunView, as_json: bool) -> int:
    values: dict[str, Any] = {
        **row_of(view).as_dict(),
        "run_dir": str(view.run.path),
        "phase": view.phase.phase if view.phase and view.status.is_live else None,
        "time_left_s": view.time_left_s,
        "evals": [{"step": event.step, "loss": event.loss} for event in view.evals],
        "notices": [event.what for event in view.notices],
        "problem": view.problem,
        "settings": view.config.to_nested(only_changed=True) if view.config else None,
    }
    ended = view.ended
    if isinstance(ended, Failed):
        values["failure"] = {"code": ended.code, "what": ended.what, "why": ended.why, "fix": ended.fix}
    if as_json:
        print(json.dumps(values, ensure_ascii=False))
        return 0
    values.pop("sparkline")
    print(table((name, _cell(name, value)) for name, value in values.items()))
    return 0


def _cell(name: str, value: Any) -> str:
    """A value of `show` as a person reads it; `--json` has it as it is."""
    if value is None:
        return ""
    if name == "created":
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s") and name != "tokens_per_s":
        return format_duration(value)
    if isinstance(value, float):
        return f"{value:.4f}" if name.endswith("loss") else f"{value:.0f}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _compare(runs: list[RunDir], as_json: bool) -> int:
    if len(runs) < 2:
        raise QloraUiError("Give two runs or more to compare.", fix="“runs compare RUN OTHER”", where="command line", code="usage")
    rows = compare(*(run.config() for run in runs))
    if as_json:
        print(json.dumps({"runs": [run.id for run in runs], "differences": {path: list(values) for path, values in rows}}, default=str))
        return 0
    print(table([("", *(run.id for run in runs)), *((path, *map(str, values)) for path, values in rows)]))
    return 0


def _resume_info(view: RunView) -> dict[str, Any]:
    newest = next(iter(view.run.saved_steps()), None)
    can = view.can_resume
    how = f"from step {newest}" if newest else "from its first step, since nothing was saved yet"
    if can:
        message = f"“train --resume {view.id}” continues it {how}."
    elif view.status is Status.QUEUED:
        message = f"It waits for its turn. Without an app, “train --resume {view.id}” begins it and “runs stop {view.id}” takes it out."
    elif view.status.can_resume:
        message = f"It is {view.status.value} and cannot be continued: {view.problem}"
    else:
        message = f"It is {view.status.value} and needs no continuing."
    return {"run_id": view.id, "can_resume": can, "checkpoint": newest, "num_steps": view.num_steps, "message": message}


def _say(values: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(values, ensure_ascii=False) if as_json else values["message"])
