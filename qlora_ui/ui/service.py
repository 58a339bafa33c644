"""What lives as long as the app: the launcher, the card, the chat, and what was read of models and machine."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from qlora_ui.base.errors import HardwareError, QloraUiError, RunError, SettingsError
from qlora_ui.base.files import typed_path
from qlora_ui.base.progress import IsCancelled, OnProgress
from qlora_ui.data.load import Loaded, load_anyway, peek
from qlora_ui.data.parse import Peek
from qlora_ui.data.report import DataReport
from qlora_ui.data.sources import hub_id
from qlora_ui.hardware.devices import DeviceProfile, current_device, named_device
from qlora_ui.hardware.gpu import GpuState, read_given_gpus
from qlora_ui.models.builtin import is_builtin
from qlora_ui.models.catalogue import ModelEntry, find_model_folder, list_models, model_facts
from qlora_ui.models.facts import ModelFacts
from qlora_ui.runs.card import Card, Holder
from qlora_ui.runs.company import fits_beside
from qlora_ui.runs.engine import engine_object
from qlora_ui.runs.launcher import Launcher
from qlora_ui.runs.read import RunReaders, RunView
from qlora_ui.runs.registry import find_run, newest_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.presets import Preset, find_preset, list_presets
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection
from qlora_ui.settings.source import DataSource
from qlora_ui.ui.background import Background
from qlora_ui.ui.checks import Checks
from qlora_ui.ui.downloads import Downloads
from qlora_ui.ui.draft import Draft, data_shape, make_draft
from qlora_ui.ui.inspection import Inquiry, Pending, data_key
from qlora_ui.ui.kept_draft import KeptDraft

if TYPE_CHECKING:
    from qlora_ui.ui.chat_desk import ChatDesk
    from qlora_ui.ui.run_lists import RunLists

MODELS_READ_S = 15.0
GPU_READ_S = 0.8
"""Cards are asked at most this often, however many pages are open."""
SETTLED_NS = 3_000_000_000
"""Disks keep the time of a change in steps of up to 2 s."""

logger = logging.getLogger("qlora_ui.ui")


class Service:
    """One per process, made by ui/launch.py. Safe to use from any handler's thread."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.card = Card()
        self.launcher = Launcher(workspace, self.card, fits_beside=self._fits_beside, make_room=self._make_room)
        self.readers = RunReaders(workspace)
        self._inspections: Inquiry[DataReport] = Inquiry("inspect-data", self.news)
        self._looks: Inquiry[DataReport] = Inquiry("count-tokens", self.news)
        self._peeks: Inquiry[Peek] = Inquiry("peek", self.news)
        self.checks = Checks(self.news)
        self._may_use_engine = False
        self._is_closing = False
        self._works: list[Background] = []
        self.downloads = Downloads(self.models_changed)
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}
        self._making = threading.RLock()
        """Held while a part is made that imports torch, for many seconds: nothing that pages ask for each second takes it."""
        self._facts: dict[tuple[str, str | None], ModelFacts | None] = {}
        self._gpus: tuple[float, list[GpuState]] = (-GPU_READ_S, [])
        self._news = 0
        self._models: tuple[float, list[ModelEntry]] = (-MODELS_READ_S, [])
        self.kept_draft = KeptDraft(workspace.root / "draft.json", self.presets, self.news)
        self._newest: tuple[int, RunDir | None] = (-1, None)
        self._loaded: tuple[Hashable, Loaded] | None = None

    def _fits_beside(self, config: RunConfig, holder: Holder) -> bool:
        """Whether a run fits the card beside its holder, with rows as long as they are where a page has had them counted."""
        return fits_beside(self.workspace, config, holder, data_shape(self._looks.known(_look_key(config))))

    def _make_room(self, holder: Holder) -> None:
        """A run was asked for, so a chat that nobody talks to gives way; anything else is waited for."""
        if holder.who == "chat" and self.has_chat:
            self.desk.give_way()

    def take_up(self, rest_s: float) -> threading.Thread:
        """Go on, in the background, with what an earlier app left; its queue after `rest_s` seconds, in which the page can open."""

        def work() -> None:
            # The boundary: a disk that cannot be read must not end this in silence; the page works without it.
            try:
                self.launcher.restore(rest_s=rest_s)
            except Exception:
                logger.exception("what an earlier app left could not be taken up")

        thread = threading.Thread(target=work, name="take-up", daemon=True)
        thread.start()
        return thread

    @property
    def chat(self) -> Any:
        """The engine's ChatService; the first use imports torch."""
        return self._once("chat", self._new_chat)

    def _new_chat(self) -> Any:
        make = engine_object("chat:ChatService")
        if self._is_closing:
            # Else a comparison that the end met while torch was imported would load its model into an app that is gone.
            raise RunError("The app is closing.", fix="Start it again", code="closing")
        return make(self.workspace, self.card)

    @property
    def has_chat(self) -> bool:
        """Whether the chat was used, that is, whether torch is here on its account."""
        return "chat" in self._made

    @property
    def lens(self) -> Any:
        """The engine's Lens on data; the first use imports torch."""
        return self._once("lens", lambda: engine_object("lens:Lens")(self.workspace))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """The part of that name, made by whoever needs it first and by nobody else meanwhile."""
        made = self._made.get(name)
        if made is None:
            with self._making:
                made = self._made.get(name)
                if made is None:
                    made = self._made[name] = make()
        return made

    def allow_engine(self) -> None:
        """From now on pages may count tokens by themselves: the app has been idle after its start, or the user asked for it."""
        if not self._may_use_engine:
            self._may_use_engine = True
            self.news()

    def inspect(self, data: DataSection, edited_at: float | None = None) -> Pending[DataReport]:
        """What is known of the data without a tokenizer, worked out in the background."""

        key = data_key(data)

        def work(told: OnProgress, is_cancelled: IsCancelled) -> DataReport:
            loaded = load_anyway(data, self.workspace, on_progress=told, is_cancelled=is_cancelled)
            self._loaded = (key, loaded)
            return loaded.report

        return self._inspections.ask(key, work, edited_at=edited_at)

    def loaded(self, data: DataSection) -> Loaded:
        """The rows of the data for looking at; raises DataError.

        They are kept until a file changes: a file of half a gigabyte takes seconds to be known by its content, and pages are drawn often.
        """
        key, kept = data_key(data), self._loaded
        if kept is None or kept[0] != key or not all(file.is_there for file in kept[1].conversations.files):
            kept = self._loaded = (key, load_anyway(data, self.workspace))
        return kept[1]

    def peek(self, source: DataSource, edited_at: float | None = None) -> Pending[Peek] | None:
        """Columns and first rows of a dataset, whatever its format; None where there is no such file. One of the Hub must be here."""
        path = typed_path(source.id)
        if os.path.isfile(path):
            stat = path.stat()
            key: tuple[Any, ...] = (str(path), stat.st_mtime_ns, stat.st_size)
        elif hub_id(source.id) is not None:
            key = (source.id, source.config, source.split)
        else:
            return None
        return self._peeks.ask(key, lambda told, stopped: peek(source, self.workspace, 1), edited_at=edited_at)

    def look(self, config: RunConfig, edited_at: float | None = None) -> Pending[DataReport] | None:
        """The same in tokens, by the engine; None while the engine rests or the model is not on this computer."""
        model = config.model
        is_here = is_builtin(model.id) or find_model_folder(model.id, model.revision, self.workspace) is not None
        if not self._may_use_engine or not is_here:
            return None
        return self._looks.ask(_look_key(config), lambda told, stopped: self.lens.report(config, told, stopped), edited_at=edited_at)

    def stop_reading(self) -> None:
        """Give up reading, downloading and counting of data, as the user wishes."""
        self._inspections.stop()
        self._looks.stop()

    def read_again(self) -> None:
        """Read what was stopped."""
        self._inspections.forget_stopped()
        self._looks.forget_stopped()

    @property
    def run_lists(self) -> RunLists:
        """All runs as rows, for the Runs tab and for every picker of a run."""
        from qlora_ui.ui.run_lists import RunLists

        lists: RunLists = self._once("run lists", lambda: RunLists(self.workspace, self.readers))
        return lists

    @property
    def desk(self) -> ChatDesk:
        """The one conversation of the app, which every page shows."""
        from qlora_ui.ui.chat_desk import ChatDesk

        desk: ChatDesk = self._once("desk", lambda: ChatDesk(self))
        return desk

    def run_for(self, run_id: str) -> RunDir | None:
        """The run that a page looks at: the chosen one, else the one that runs, else the newest; None if there is none.

        Raises RunError where the whole workspace is away: what a page shows of its run is not to become that of one that lost its files.
        """
        self.workspace.raise_if_away()
        if run_id:
            try:
                return find_run(self.workspace, run_id)
            except QloraUiError:
                return None
        current = self.launcher.current()
        if current is not None:
            return current
        return self._newest_run()

    def _newest_run(self) -> RunDir | None:
        """Looked for where a run came or went: a page asks several times a second, and there may be thousands."""
        changed = self.workspace.runs.stat().st_mtime_ns
        seen, newest = self._newest
        if changed != seen:
            newest = newest_run(self.workspace)
            # Another run within the same tick of the disk's clock would leave no trace: look again until that has passed.
            is_settled = time.time_ns() - changed > SETTLED_NS
            self._newest = (changed if is_settled else -1, newest)
        return newest

    def view(self, run_id: str) -> RunView | None:
        """What is known now of the run that a page looks at (`run_for`); incremental, cheap for polling."""
        run = self.run_for(run_id)
        return self.readers.view(run) if run is not None else None

    def gpus(self) -> list[GpuState]:
        """The cards as they are now, the one that runs in the app use first; empty without a driver. Read once for all pages."""
        with self._lock:
            read_at, states = self._gpus
            if time.monotonic() - read_at > GPU_READ_S:
                states = read_given_gpus()
                self._gpus = (time.monotonic(), states)
            return states

    def news(self) -> None:
        """Something that a page's settings depend on was found out in the background: pages draw them anew at their next beat."""
        with self._lock:
            self._news += 1

    @property
    def num_news(self) -> int:
        """Grows with every `news`."""
        return self._news

    def device(self, name: str = "", wanted: str = "auto") -> DeviceProfile:
        """What estimates are for: the card chosen from the list, else this machine's card or CPU (`wanted` as launch.device has it)."""
        try:
            return named_device(name, self.workspace) if name else current_device(self.workspace, wanted)
        except HardwareError:
            return current_device(self.workspace)

    def facts(self, model_id: str, revision: str | None = None) -> ModelFacts | None:
        """What is known of a base model without loading it; None where nothing is known yet.

        Raises ModelError where the model is refused.
        """
        key = (model_id, revision)
        with self._lock:
            known = self._facts.get(key)
        if known is not None:
            return known
        facts = model_facts(model_id, revision, self.workspace)
        with self._lock:
            self._facts[key] = facts
        return facts

    def models(self) -> list[ModelEntry]:
        """The models of this computer; looked for at most every MODELS_READ_S seconds."""
        with self._lock:
            read_at, entries = self._models
            if time.monotonic() - read_at > MODELS_READ_S:
                entries = list_models(self.workspace)
                self._facts.clear()  # a run may have downloaded a model, somebody may have changed a folder
                self._models = (time.monotonic(), entries)
            return entries

    def models_changed(self) -> None:
        """Look at the models anew, after a download."""
        with self._lock:
            self._facts.clear()
            self._models = (-MODELS_READ_S, [])
        self.news()

    def presets(self) -> list[Preset]:
        """The shipped presets and the user's own."""
        return list_presets(self.workspace.presets)

    def preset_config(self, name: str) -> RunConfig:
        """The settings of a preset; the defaults for no or an unknown name."""
        try:
            return find_preset(name, self.workspace.presets).config if name else RunConfig()
        except SettingsError:
            return RunConfig()

    def draft(self, values: Mapping[str, Any], *, preset: str = "", device: str = "", edited_at: float | None = None) -> Draft:
        """The settings on a page, which was last edited then (see Inquiry.ask), with all that follows from them."""
        return make_draft(self, values, preset, self.device(device, str(values.get("launch.device", "auto"))), edited_at)

    def background(self, name: str) -> Background:
        """Room for one piece of work of minutes at a time, which ends with the app."""
        work = Background(name)
        self._works.append(work)
        return work

    def worked_on(self) -> dict[str, str]:
        """Runs that are being exported, evaluated, … by their ids, with the name of that work."""
        return {progress.run_id: work.name for work in self._works if (progress := work.progress()).is_running}

    def shutdown(self, timeout_s: float = 30) -> None:
        """Stop and save the running job, end other work, free the chat."""
        self._is_closing = True
        until = time.monotonic() + timeout_s
        for work in self._works:
            work.close()
        self.launcher.shutdown(timeout_s)
        if self.has_chat:
            self.chat.close()
        for work in self._works:
            # The process would be aborted where torch still computes at its end.
            work.wait(until - time.monotonic())


def _look_key(config: RunConfig) -> tuple[object, ...]:
    """What the tokens of the data depend on."""
    return (config.model.model_dump_json(), config.eval.share, config.train.seed, *data_key(config.data))
