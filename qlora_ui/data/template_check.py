"""A foreign chat template is tried once in a child process: one that loops or fills the memory must not do so in the app."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache

from qlora_ui.base import children
from qlora_ui.base.errors import ModelError
from qlora_ui.base.units import format_bytes
from qlora_ui.catalog.templates import TEMPLATES
from qlora_ui.models.folder import MAX_TEMPLATE_BYTES

_CPU_S = 2.0
"""Of the processor; a good template takes a few milliseconds."""
TIME_LIMIT_S = 4.5 if sys.platform == "win32" else 60.0
"""By the clock. Where the system counts a process's own time, a loop ends by that: on a machine that trains beside, a good
template's process may wait for seconds until it has its turn."""


@lru_cache(maxsize=64)
def check_template(source: str) -> None:
    """Raise ModelError for a template that is too long, has a syntax error, reaches for Python's inside, or does not end in
    two seconds of the processor and 512 MiB. A template that merely refuses the trial conversation passes."""
    if any(source == template.jinja for template in TEMPLATES):
        return
    if len(source.encode()) > MAX_TEMPLATE_BYTES:
        raise _error("TPL-LIMIT", f"The chat template is longer than {format_bytes(MAX_TEMPLATE_BYTES)}.", "More is not run.")
    try:
        done = subprocess.run(
            children.isolated("from qlora_ui.data.template_child import main; main()"),
            input=json.dumps({"template": source, "cpu_s": _CPU_S}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIME_LIMIT_S,
            env=children.environment_without_secrets(),
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except subprocess.TimeoutExpired:
        raise _error("TPL-TIMEOUT", f"The chat template does not end within {TIME_LIMIT_S:.1f} s.", "") from None
    try:
        said = json.loads(done.stdout)
    except ValueError:
        # Ended by the system: by signal for processor time, else for memory.
        if done.returncode in (-24, -9):
            raise _error("TPL-TIMEOUT", f"The chat template does not end within {_CPU_S:.0f} s.", "It loops.") from None
        raise _error("TPL-LIMIT", "The chat template fills the memory.", "") from None
    if said["code"]:
        raise _error(said["code"], said["what"], "")


def _error(code: str, what: str, why: str) -> ModelError:
    return ModelError(what, why=why, fix="Choose one of the built-in chat templates.", where="model.template", code=code)
