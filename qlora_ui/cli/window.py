"""The page in a window of its own: by pywebview where it is installed, else by a browser that can show one page as an app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from qlora_ui.runs.workspace import Workspace

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge", "brave-browser", "chrome")
MAC_APPS = ("Google Chrome", "Microsoft Edge", "Chromium", "Brave Browser")
WINDOWS_PATHS = (r"Microsoft\Edge\Application\msedge.exe", r"Google\Chrome\Application\chrome.exe")
_WEBVIEW = """import sys, webview
getattr(webview, "settings", {}).update(ALLOW_DOWNLOADS=True)  # off by itself: an export, a conversation would go nowhere
webview.create_window("QLoRA UI", sys.argv[1], width=1280, height=860)
webview.start(private_mode=False)
"""


def open_window(url: str, workspace: Workspace) -> bool:
    """Open the page in a window of its own, in a process of its own; says why on stderr where that cannot be.

    Closing the window ends neither the app nor a run: they end with Ctrl-C, as they do for the browser.
    """
    if sys.platform not in ("win32", "darwin") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        reason = "there is no display"
    else:
        command = window_command(url, workspace.root)
        if command is not None:
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            return True
        reason = "neither pywebview (pip install pywebview) nor Chrome, Chromium or Edge is installed"
    print(f"No window: {reason}. The page opens in the browser instead.", file=sys.stderr)
    return False


def window_command(url: str, workspace: Path) -> list[str] | None:
    """The command that shows `url` as an app; None where nothing on this machine can."""
    if find_spec("webview") is not None:
        return [sys.executable, "-c", _WEBVIEW, url]
    browser = find_browser(sys.platform, os.environ)
    if browser is None:
        return None
    # A profile of its own: else a browser that is open already takes the page over, with its own size and its extensions.
    profile = workspace / "cache" / "window"
    return [browser, f"--app={url}", f"--user-data-dir={profile}", "--window-size=1280,860", "--no-first-run", "--no-default-browser-check"]


def find_browser(platform: str, environ: Mapping[str, str]) -> str | None:
    """A browser of Chrome's family, the only ones that know `--app`."""
    if platform == "darwin":
        folders = (Path("/Applications"), Path(environ.get("HOME", "/")) / "Applications")
        paths = [folder / f"{name}.app" / "Contents" / "MacOS" / name for folder in folders for name in MAC_APPS]
    elif platform == "win32":
        folders_named = (environ.get(name, "") for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"))
        paths = [Path(folder) / rest for folder in folders_named if folder for rest in WINDOWS_PATHS]
    else:
        paths = []
    found = next((str(path) for path in paths if path.is_file()), None)
    return found or next((path for name in COMMANDS if (path := shutil.which(name, path=environ.get("PATH")))), None)
