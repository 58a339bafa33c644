"""The page's boundary: what a handler raises becomes a sentence on the page, and a bug becomes a sentence with an id."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec, TypeVar

import gradio as gr

from qlora_ui.base.errors import Problem, QloraUiError, sentences
from qlora_ui.base.files import disk_in_words
from qlora_ui.base.progress import Cancelled
from qlora_ui.ui.markup import bullet_list, escape, prose, sentence_case

logger = logging.getLogger("qlora_ui.ui")

P = ParamSpec("P")
R = TypeVar("R")

TOAST_S = 12
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of a listener: no way in for other programs, and the page says by itself what goes on."""


def handler(function: Callable[P, R]) -> Callable[P, R]:
    """A Gradio handler whose failures reach the user in words.

    A QloraUiError (or a disk that refuses) is shown as what, why and fix. Anything else is a bug of ours: logged with an id and its
    traceback, shown as a sentence with that id. Works for plain functions and for generators.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            with _in_words(function.__name__):
                yield from function(*args, **kwargs)

        return stream  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _in_words(function.__name__):
            return function(*args, **kwargs)

    return call


def attempt(work: Callable[[], R], where: str) -> tuple[R | None, tuple[Problem, ...]]:
    """What `work` gives and what stood in its way: the same boundary where no event of Gradio waits for an answer.

    For threads of ours and for views; Cancelled passes through, it is no failure.
    """
    try:
        return work(), ()
    except Cancelled:
        raise
    except Exception as error:
        if (told := _for_the_user(error)) is not None:
            return None, told.problems
        why = f"Nothing of yours was changed; the log has the details under {_log_bug(error, where)}"
        return None, (Problem("", "The app made a mistake here", why=why, code="bug"),)


def problems_html(problems: tuple[Problem, ...]) -> str:
    """Problems as a list of short paragraphs: what in bold, then why and the fix."""
    return bullet_list([_paragraph(problem) for problem in problems], "q-problems")


def refused_html(error: QloraUiError) -> str:
    """Why there is no answer, and what to do, in the place of the answer; read out at once."""
    return f'<div role="alert">{problems_html(error.problems)}</div>'


def toast_html(title: str, body: str) -> str:
    """A message that passes by, under a heading of its own: `title` is plain text, `body` ready-made HTML.

    Gradio heads every message with its kind ("Error"), whatever title it is given; static/frame.js puts ours there.
    """
    return f'<span class="q-toast-title">{escape(title)}</span>{body}'


@contextlib.contextmanager
def _in_words(where: str) -> Iterator[None]:
    try:
        yield
    except (gr.Error, GeneratorExit):
        raise
    except Exception as error:
        _show(error, where)


def _log_bug(error: Exception, where: str) -> str:
    """Log an error that nobody foresaw, with its traceback, and return the id to show."""
    bug_id = secrets.token_hex(3)
    logger.error("bug %s in %s", bug_id, where, exc_info=error)
    return bug_id


def _for_the_user(error: Exception) -> QloraUiError | None:
    """The error, if the user can act on it: one of ours, or a disk that refuses or is away, wherever it was met."""
    if isinstance(error, FileNotFoundError) and error.filename:
        logger.warning("%s is not there", error.filename, exc_info=error)
        why = "It was moved or deleted, or the disk that it is on is away"
        return QloraUiError(f"{error.filename} is not there.", why=why, fix="Put it back, then do it again", code="missing")
    return error if isinstance(error, QloraUiError) else disk_in_words(error)


def _show(error: Exception, where: str) -> NoReturn:
    told = _for_the_user(error)
    if told is not None:
        if len(told.problems) == 1:
            problem = told.problems[0]
            message = toast_html(sentence_case(problem.what.rstrip(".")), f"<p>{prose(sentences(problem.why, problem.fix))}</p>")
        else:
            message = toast_html(f"{len(told.problems)} things to change", problems_html(told.problems))
    else:
        bug_id = _log_bug(error, where)
        message = toast_html("A fault in the app", f"<p>Nothing of yours was changed; the log has the details under {bug_id}.</p>")
    raise gr.Error(message, duration=TOAST_S, print_exception=False) from None


def _paragraph(problem: Problem) -> str:
    return f"<strong>{prose(sentence_case(problem.what.rstrip('.')))}.</strong> {prose(sentences(problem.why, problem.fix))}"
