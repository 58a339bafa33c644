"""The settings that the next visit finds: those that a page last had, whichever it was; other open pages are told of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.files import put_aside, read_json, write_json
from qlora_ui.runs.moved import moved_here
from qlora_ui.settings.presets import FIRST_PRESET, Preset
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.ui.draft import Draft
from qlora_ui.ui.drawings import MAX_TABS

OWN_WORDS = ("output.name", "output.notes", "output.tags")
"""Options that are about one run: what another page calls its next one is nothing that this one has to know."""

logger = logging.getLogger("qlora_ui.ui")


class KeptDraft:
    """One per app; safe to use from any thread."""

    def __init__(self, file: Path, presets: Callable[[], Sequence[Preset]], news: Callable[[], None]) -> None:
        """`news` is called when a page has other settings, so that the others draw theirs anew."""
        self._file = file
        self._presets = presets
        self._news = news
        self._lock = threading.Lock()
        self.lost = ""
        """What became of settings of an earlier visit that could not be read; pages tell of it until a run is started."""
        self._saved: dict[str, Any] = {}
        self._saved_by = ""
        self._tabs: dict[str, dict[str, Any]] = {}
        """By browser tab: its settings as they were opened or last changed."""

    def remember(self, draft: Draft, tab: str, *, is_edit: bool) -> None:
        """Keep the settings of a browser tab for the next page load, when the user or the app changed them there and they are right.

        Not at each drawing, nor at each press of a button: a page that lies open in another window would put its old settings back.
        """
        if draft.config is None:
            return
        saved = {"preset": draft.preset, "settings": draft.config.to_nested(only_changed=True)}
        with self._lock:
            before = self._tabs.get(tab)
            is_kept = is_edit and saved not in (before, self._saved)
            if is_kept:
                try:
                    write_json(self._file, saved)
                except OSError as error:
                    # A full disk must not stop the form: what the edit means is drawn all the same.
                    logger.warning("the settings could not be kept for the next visit: %s", error)
                    return
                self._saved, self._saved_by = saved, tab
            if is_edit or before is None:
                self._tabs[tab] = saved
                while len(self._tabs) > MAX_TABS:
                    del self._tabs[next(iter(self._tabs))]
            has_others = len(self._tabs) > 1
        if is_kept and has_others:
            self._news()

    def elsewhere(self, draft: Draft, tab: str) -> dict[str, Any] | None:
        """What another page was given since this one was opened or changed, by path; None where it has the same as this one."""
        with self._lock:
            saved = self._saved if self._saved_by not in ("", tab) else {}
        if not saved or draft.config is None:
            return None
        config = RunConfig.parse(saved["settings"])
        changes = {path: theirs for path, (theirs, _) in config.differences(draft.config).items() if path not in OWN_WORDS}
        return changes or None

    def insist(self, tab: str) -> None:
        """Take the settings of this tab for the last ones at its next drawing, though nothing was changed there."""
        with self._lock:
            self._tabs.pop(tab, None)

    def last(self) -> tuple[str, RunConfig]:
        """Preset and settings as a page last had them; on the first visit the demo, ready to start."""
        try:
            saved = read_json(self._file)
            if saved is not None or self._file.exists():
                return self.preset_here(saved.get("preset")), moved_here(RunConfig.parse(saved["settings"]), self._file.parent)
        except SettingsError as error:
            self._lose(f": {error}")
        except (OSError, AttributeError, LookupError, TypeError) as error:
            self._lose(f": {error.strerror}." if isinstance(error, OSError) else ".")
        first = next((preset.config for preset in self._presets() if preset.name == FIRST_PRESET), RunConfig())
        return FIRST_PRESET, first

    def preset_here(self, name: object) -> str:
        """The name; empty for a preset that was deleted, renamed or broken since.

        Gradio refuses every request of a page whose picker shows what is not among its choices, so Start would never come on.
        """
        return next((preset.name for preset in self._presets() if preset.name == name), "")

    def _lose(self, why: str) -> None:
        aside = put_aside(self._file)
        logger.warning("the settings of the last visit, now %s, could not be read%s", aside, why)
        self.lost = (
            f"The settings of your last visit could not be read{why} They are kept in the workspace as {aside.name}. "
            "The page began with those of the demo."
        )
