"""Gradio's import leaves its own folder alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import inspect, pathlib
read = pathlib.Path.read_text
seen = []
def watched(self, *args, **kwargs):
    seen.append(self.name)
    return read(self, *args, **kwargs)
pathlib.Path.read_text = watched
import qlora_ui.ui
import gradio
assert gradio.Textbox(label="it works").get_config()["label"] == "it works"
print(len([name for name in seen if name.endswith(".pyi")]))
"""


def test_no_stubs_are_compared_or_written() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
