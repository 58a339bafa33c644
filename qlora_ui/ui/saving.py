"""Saving a file that an event has just made, without a second press."""

from __future__ import annotations

_SAVE = """(ready) => {
  if (!ready || window.qSaved === ready) return;
  window.qSaved = ready;
  // The button is loaded when it is first shown.
  const press = (tries) => setTimeout(() => {
    const button = document.querySelector("#FILE");
    if (button) button.click();
    else if (tries) press(tries - 1);
  }, 200);
  press(40);
}"""


def save_js(file_id: str) -> str:
    """JavaScript for `.then(None, [ready], None, js=…)`: presses the download button of that id once for each new value of `ready`."""
    return _SAVE.replace("FILE", file_id)
