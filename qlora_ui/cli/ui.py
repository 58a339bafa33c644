"""`app.py ui`: the page, on this computer only unless told otherwise."""

from __future__ import annotations

import argparse
import json
import os
import webbrowser

from qlora_ui.cli.window import open_window
from qlora_ui.runs.workspace import Ownership, Workspace

LAST_PORT = 65535
HELP = "open the page (what happens without a word, too)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to serve, and what to open."""
    parser.add_argument("--port", type=port_number, help="port (default: the first free one from 7860)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; any but this computer's own needs --auth")
    parser.add_argument("--auth", default="", metavar="NAME[:PASSWORD]", help="ask for a login; without a password one is made")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    parser.add_argument("--no-warm-up", action="store_true", help="load torch only when it is needed, not in idle time after the start")
    parser.add_argument("--window", action="store_true", help="open a window of its own (by Chrome, Edge, Chromium or pywebview)")


def port_number(text: str, *, least: int = 1) -> int:
    """A port that can be asked for; argparse puts the refusal into its own sentence."""
    if text.isdecimal() and least <= int(text) <= LAST_PORT:
        return int(text)
    raise argparse.ArgumentTypeError(f"“{text}” is no port, give a number from {least} to {LAST_PORT}")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from qlora_ui.ui.launch import Address, serve, wait_for_the_end, warm_up_later

    workspace = Workspace.at(arguments.workspace)
    with Ownership(workspace) as ownership:
        served = serve(workspace, Address(arguments.host, arguments.port, arguments.auth))
        ownership.note(served.url)
        if arguments.json:
            print(json.dumps({"url": served.url, "pid": os.getpid(), "password": served.password or None}), flush=True)
        else:
            print(f"QLoRA UI is at {served.url}  (Ctrl-C ends it)", flush=True)
            if served.password:
                print(f"Sign in as {arguments.auth} with the password {served.password}", flush=True)
        if not arguments.no_browser:
            _open(served.url, workspace, in_window=arguments.window)
        if not arguments.no_warm_up:
            warm_up_later(served.service)
        wait_for_the_end(served)
    return 0


def _open(url: str, workspace: Workspace, *, in_window: bool) -> None:
    if not (in_window and open_window(url, workspace)):
        webbrowser.open(url)
