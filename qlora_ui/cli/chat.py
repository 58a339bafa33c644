"""`app.py chat`: talk to a run's adapter, or to a base model, in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from qlora_ui.base.errors import QloraUiError
from qlora_ui.cli import text_word
from qlora_ui.cli.target import add_target, target_of
from qlora_ui.data.chat_history import ChatHistory
from qlora_ui.runs.card import Card
from qlora_ui.runs.held_back import shared_system
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sampling import Sampling

HELP = "talk to a run's adapter, beside its base, or to a model"
COMMANDS = "/retry  /undo  /clear  /system TEXT  /base (both sides, or the adapter alone)  /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who is asked, what, and how the answer is chosen."""
    add_target(parser)
    parser.add_argument("--prompt", type=text_word, help="one question; without it a conversation begins")
    parser.add_argument("--system", type=text_word, help="system prompt (default: the one that all rows of the run begin with)")
    parser.add_argument("--no-base", action="store_true", help="with --run: only the adapter answers")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 always takes the likeliest word (default 0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, help="choose among the likeliest words up to this probability (default 0.9)")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer (default 256)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")


def run(arguments: argparse.Namespace) -> int:
    """Answer once (`--prompt`) or talk until the user leaves."""
    if arguments.json and arguments.prompt is None:
        raise QloraUiError("--json needs a question.", fix="Give --prompt.", where="--prompt", code="usage")
    workspace = Workspace.at(arguments.workspace)
    target = target_of(arguments, workspace)
    if arguments.system is None:
        arguments.system = shared_system(workspace, target.run_id) if target.run_id else ""
        if arguments.system and not arguments.json:
            print(f"System prompt, as in the run's rows: {arguments.system}", file=sys.stderr)

    from qlora_ui.engine.chat import ChatService

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.max_tokens, arguments.seed)
    service = ChatService(workspace, Card())
    try:
        loaded = service.load(target, lambda what, share: print(what, file=sys.stderr) if not arguments.json else None)
        if loaded.warning:
            print(loaded.warning, file=sys.stderr)
        sides = loaded.sides[-1:] if arguments.no_base else loaded.sides
        if arguments.prompt is not None:
            return _answer_once(service, arguments, sampling, sides)
        return _talk(service, arguments, sampling, loaded.sides, sides)
    finally:
        service.close()


def _answer_once(service: Any, arguments: argparse.Namespace, sampling: Sampling, sides: tuple[str, ...]) -> int:
    history = ChatHistory(arguments.system)
    history.ask(arguments.prompt)
    speed = {}
    shown = sides[-1]
    for delta in service.stream(history.questions(sides), sampling, sides):
        history.add(delta.side, delta.text)
        speed[delta.side] = delta.tokens_per_s
        if not arguments.json and delta.side == shown:
            print(delta.text, end="", flush=True)
    answers = history.turns[-1].answers
    if arguments.json:
        base = answers.get("base") if shown != "base" else None
        row = {"answer": answers[shown], "base_answer": base, "tokens_per_s": round(speed[shown], 1)}
        print(json.dumps(row, ensure_ascii=False), flush=True)
        return 0
    print()
    if shown != "base" and "base" in answers:
        print(f"\n[base] {answers['base']}")
    return 0


def _talk(service: Any, arguments: argparse.Namespace, sampling: Sampling, known: tuple[str, ...], sides: tuple[str, ...]) -> int:
    history = ChatHistory(arguments.system)
    print(f"{' and '.join(sides)} listen. {COMMANDS}", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return 0
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return 0
        if word == "/base":
            sides = known if len(sides) == 1 else known[-1:]
            continue
        if word == "/system":
            history.system = rest
            continue
        if word == "/clear":
            history.clear()
            continue
        if word == "/undo":
            history.undo()
            continue
        if word != "/retry" and line.startswith("/") and word[1:].isalpha():
            print(f"There is no {word}; there is {COMMANDS}. With a space before it, it is sent to the model.", file=sys.stderr)
            continue
        try:
            if word == "/retry":
                history.retry()
            else:
                history.ask(line)
            _say(service, history, sampling, sides)
        except QloraUiError as error:
            print(error, file=sys.stderr)


def _say(service: Any, history: ChatHistory, sampling: Sampling, sides: tuple[str, ...]) -> None:
    """Stream the last side as it comes, the others after it; Ctrl-C ends the answer and not the conversation."""
    shown = sides[-1]
    try:
        for delta in service.stream(history.questions(sides), sampling, sides):
            history.add(delta.side, delta.text)
            if delta.side == shown:
                print(delta.text, end="", flush=True)
    except KeyboardInterrupt:
        service.stop()
    print()
    for side in sides[:-1]:
        print(f"[{side}] {history.turns[-1].answers.get(side, '')}")
