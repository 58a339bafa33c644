"""`app.py serve`: a run's adapter under OpenAI's chat API on this computer."""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from typing import NoReturn

from qlora_ui.cli.target import add_target, target_of
from qlora_ui.cli.ui import port_number
from qlora_ui.runs.card import Card
from qlora_ui.runs.workspace import Workspace

SLICE_S = 0.5
HELP = "serve a run's adapter (or a model) to other programs on this computer, in the way of OpenAI's chat API"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who answers, and where."""
    add_target(parser)
    parser.add_argument(
        "--port", type=partial(port_number, least=0), default=8000, help="port on 127.0.0.1; 0 takes a free one (default 8000)"
    )
    parser.add_argument("--key", default="", help="clients must send this key")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    workspace = Workspace.at(arguments.workspace)
    target = target_of(arguments, workspace)

    from qlora_ui.engine.chat import ChatService
    from qlora_ui.engine.serve import ChatServer

    service = ChatService(workspace, Card())
    try:
        server = ChatServer(service, arguments.port, arguments.key)
        try:
            loaded = service.load(target, _tell)
            if loaded.warning:
                print(loaded.warning, file=sys.stderr)
            url = server.start()
            row = {"url": url, "models": list(loaded.sides)}
            print(json.dumps(row) if arguments.json else f"{url}   models: {', '.join(loaded.sides)}   Ctrl-C ends it", flush=True)
            _wait_for_ctrl_c()
        finally:
            server.stop()
    finally:
        service.close()
    return 0


def _wait_for_ctrl_c() -> NoReturn:
    while True:
        # In slices: Windows wakes no wait without an end for Ctrl-C.
        time.sleep(SLICE_S)


def _tell(what: str, share: float | None) -> None:
    print(what, file=sys.stderr)
