"""Starts runs, one after another, and passes the user's wishes on to them.

A run is started once, however often Start is pressed; it waits in the queue for the card and for its turn; it belongs to the
app and never to a page. Thread: the job runs here and ends with the app. Process: `accelerate launch` in a session of its
own, its output in run.log; it outlives the app, and the next app takes it up again where it finds it alive.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial

from qlora_ui.base.errors import RunError
from qlora_ui.base.files import give_room
from qlora_ui.base.units import format_duration
from qlora_ui.runs import process, registry, thread
from qlora_ui.runs.card import Card, Holder
from qlora_ui.runs.ending import config_or_none, end_as_another_said, end_unended, end_unstarted, has_own_process
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.runs.waiting import find_left, read_order, write_order
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

SAME_PRESS_S = 3.0
"""Starts with equal settings within this time are one press of the button."""
KEPT_KEYS = 1000
log = logging.getLogger(__name__)


class Launcher:
    """The queue of a workspace and the job that runs; one object for each app."""

    def __init__(
        self,
        workspace: Workspace,
        card: Card,
        *,
        fits_beside: Callable[[RunConfig, Holder], bool] = lambda config, holder: False,
        make_room: Callable[[Holder], object] = lambda holder: None,
    ) -> None:
        """`fits_beside` says whether a run fits on the card together with what is already there; `make_room` is told, again and again,
        who keeps the next run waiting, and may have it let go."""
        self._workspace = workspace
        self._card = card
        self._fits_beside, self._make_room = fits_beside, make_room
        self._changed = threading.Condition()
        self._queue: list[RunDir] = []
        self._working: list[RunDir] = []
        """Jobs of an earlier app that still work and hold the card; the queue waits for their ends."""
        self._others = read_order(workspace)
        """Runs that wait for the app to take them up, which `train` of the command line never does."""
        self._rests_until = 0.0
        self._current: RunDir | None = None
        self._is_wanted_again = False
        """Whether Continue was pressed for the current run, between its last event and its job's end."""
        self._keys: OrderedDict[str, tuple[RunDir, float]] = OrderedDict()
        self._dispatcher: threading.Thread | None = None
        self._is_held = False
        self._is_closed = False
        self._waiting_for: Holder | None = None

    def start(self, config: RunConfig, *, key: str = "") -> RunDir:
        """Make a run and put it at the end of the queue.

        The same `key` twice (one press of a button that arrived twice) gives the same run; without one, presses with equal
        settings that follow each other within three seconds count as one, however many there are and from whatever page.
        """
        given = key or hashlib.sha256(config.to_yaml().encode()).hexdigest()
        with self._changed:
            self._check_open()
            now = time.monotonic()
            known = self._keys.get(given)
            if known is not None and (key or now - known[1] < SAME_PRESS_S):
                self._keys[given] = (known[0], now)
                return known[0]
            run = registry.create_run(self._workspace, config)
            self._keys[given] = (run, now)
            while len(self._keys) > KEPT_KEYS:
                self._keys.popitem(last=False)
            self._enqueue(run)
        return run

    def resume(self, run: RunDir) -> RunDir:
        """Put a paused, stopped, failed or crashed run back into the queue; a second press changes nothing."""
        with self._changed:
            self._check_open()
            if run in self._queue:
                return run
            view = read_run(run)
            status = view.status
            if run == self._current:
                # Its journal has ended and its job is about to leave: one writer at a time, so the run goes back after that.
                self._is_wanted_again = self._is_wanted_again or status.can_resume
                return run
            cannot, anew = f"Run {run.id} cannot be continued.", "Start a new run from its settings"
            if status is Status.DONE:
                raise RunError(cannot, why="It is done", fix=anew, code="run-ended")
            if status.is_live or (status is Status.QUEUED and run.owner_is_alive()):
                raise run.refusal(cannot, why="Another process works on it", fix=anew)
            if view.config is None:
                raise RunError(cannot, why=view.problem, fix=f"Mend {run.config_path}, then continue it", code="run-unreadable")
            self._put_back(run)
        return run

    def request(self, run: RunDir, request: Request) -> str:
        """Ask a run for something; the answer is a sentence for the user that says when it will be done.

        Raises RunError where there is nothing to ask, saying what the run's state is by now: the page may be old.
        """
        with self._changed:
            is_waiting, is_starting = self._is_waiting(run), self._is_starting(run)
            if request is Request.SAVE_NOW and (is_waiting or is_starting):
                raise RunError(
                    f"Run {run.id} has not started.", why="There is nothing to save yet", fix="Save it once it trains", code="run-not-live"
                )
            if is_waiting:
                self._unqueue(run)
                return "Taken out of the queue."
            if is_starting:
                # The engine is being loaded, which may take half a minute; the job finds the request when it begins.
                run.request(request)
                return f"{'Pausing' if request is Request.PAUSE else 'Stopping'} as soon as it has begun."
        return ask(run, request)

    def queue(self) -> list[RunDir]:
        """The runs that wait, next one first."""
        with self._changed:
            return list(self._queue)

    def current(self) -> RunDir | None:
        """The run that is worked on now."""
        with self._changed:
            return self._current

    def waiting_for(self) -> Holder | None:
        """Who holds the card that the next run waits for."""
        with self._changed:
            return self._waiting_for

    def move(self, run: RunDir, position: int) -> None:
        """Give a waiting run another place in the queue, counted from 0."""
        with self._changed:
            self._find_waiting(run)
            self._queue.remove(run)
            self._queue.insert(max(position, 0), run)
            self._remember()

    def cancel(self, run: RunDir) -> None:
        """Take a waiting run out of the queue; its settings stay in the list of runs."""
        with self._changed:
            if self._is_starting(run):
                run.request(Request.STOP)
                return
            self._find_waiting(run)
            self._unqueue(run)

    @property
    def is_held(self) -> bool:
        """Whether the queue waits for the user, as it does after an app that ended while a run began."""
        with self._changed:
            return self._is_held

    def hold(self, held: bool) -> None:
        """Keep the queue from starting its next run, or let it go on."""
        with self._changed:
            self._is_held = held
            self._rests_until = 0.0
            self._changed.notify_all()

    def restore(self, *, rest_s: float = 0.0) -> list[RunDir]:
        """Take up what an earlier app left: a job in its own process that still works, and the queue.

        The queue goes on by itself, after a rest of `rest_s` seconds that the user's next wish ends; it is held where a run
        had its turn and the app ended before the job began. Returns the runs that crashed with that app; each can be continued.
        """
        order = self._others
        left = find_left(self._workspace, order)
        # The other processes of a first one that was killed wait for it, on a card for ever.
        process.end_processes(left.crashed)
        for run in left.crashed:
            give_room(run.adapter)
            end_as_another_said(run)
        with self._changed:
            if self._is_closed:
                return []
            known = {*self._queue, *self._working, self._current}
            # What was found before the lock was taken may have been started, or taken out, by now.
            waiting = [run for run in left.waiting if run not in known and read_run(run).status is Status.QUEUED]
            self._others = []
            self._working += [run for run in left.working if run not in known]
            self._queue[:0] = waiting
            if waiting:
                # One that the order does not name had its turn, and its app ended before the job began: what ended it may do so again.
                self._is_held = self._is_held or any(run.id not in order for run in waiting)
                self._rests_until = time.monotonic() + rest_s
                self._remember()
            if waiting or self._working:
                self._wake()
            return list(left.crashed)

    def wait_until_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing runs and nothing waits; False where the time was not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._working and self._current is None, timeout_s)

    def shutdown(self, timeout_s: float = 30.0) -> bool:
        """Stop the job of this app with its work saved and end; jobs in processes of their own go on.

        Returns whether the job ended in time; the waiting runs stay queued for the next app.
        """
        with self._changed:
            self._is_closed = True
            self._remember()
            self._queue.clear()
            current, dispatcher = self._current, self._dispatcher
            self._changed.notify_all()
        goes_on = current is not None and has_own_process(config_or_none(current))
        if current is not None and not goes_on:
            current.request(Request.STOP)
        if dispatcher is None or goes_on:
            return True
        dispatcher.join(timeout_s)
        return not dispatcher.is_alive()

    # The rest runs under the lock or in the dispatcher's thread.

    def _check_open(self) -> None:
        if self._is_closed:
            raise RunError("The app is closing.", fix="Start it again", code="closing")

    def _is_waiting(self, run: RunDir) -> bool:
        """Whether the run is in the queue and no job of an earlier app has begun on it after all."""
        return run in self._queue and not run.owner_is_alive()

    def _is_starting(self, run: RunDir) -> bool:
        """Whether the run has left the queue and its job has not begun."""
        return run == self._current and read_run(run).status is Status.QUEUED

    def _find_waiting(self, run: RunDir) -> None:
        if not self._is_waiting(run):
            raise RunError(
                f"Run {run.id} does not wait any more.",
                why=f"It is {read_run(run).status.value} by now",
                fix="Look at the page again",
                code="run-not-queued",
            )

    def _enqueue(self, run: RunDir) -> None:
        self._queue.append(run)
        self._others = [name for name in self._others if name != run.id]
        self._rests_until = 0.0
        self._remember()
        self._wake()

    def _wake(self) -> None:
        if self._dispatcher is None or not self._dispatcher.is_alive():
            self._dispatcher = threading.Thread(target=self._dispatch, name="launcher", daemon=True)
            self._dispatcher.start()
        self._changed.notify_all()

    def _put_back(self, run: RunDir) -> None:
        for request in Request:
            run.take_request(request)
        registry.queue_run(run)
        self._enqueue(run)

    def _unqueue(self, run: RunDir) -> None:
        registry.unqueue_run(run)
        self._queue.remove(run)
        self._remember()
        self._changed.notify_all()

    def _remember(self) -> None:
        try:
            write_order(self._workspace, [*self._others, *(run.id for run in self._queue)])
        except OSError as error:
            # A full disk: the runs themselves say that they wait, only their order is not written down.
            log.warning("the order of the queue could not be written: %s", error)

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and self._next() is None:
                    self._changed.wait(max(self._rests_until - time.monotonic(), 0.0) or None)
                run = self._next()
                if self._is_closed or run is None:
                    return
            try:
                has_worked = self._work_on(run)
            # The boundary: whatever goes wrong with one run (a full disk, a folder that is gone), the next ones have their turn.
            except Exception as error:
                self._give_up(run, error)
                has_worked = True
            if not has_worked:
                time.sleep(0.2)

    def _next(self) -> RunDir | None:
        if self._working:
            return self._working[0]
        is_free = not self._is_held and time.monotonic() >= self._rests_until
        return self._queue[0] if self._queue and is_free else None

    def _take(self, run: RunDir) -> None:
        for runs in (self._working, self._queue):
            if run in runs:
                runs.remove(run)

    def _work_on(self, run: RunDir) -> bool:
        """Run it if the card is free; False where it still waits (its place in the queue may have changed meanwhile)."""
        if not run.path.is_dir():
            # Deleted while it waited: a job would make the folder anew, with nothing in it.
            log.warning("run %s was deleted while it waited", run.id)
            with self._changed:
                self._take(run)
                self._remember()
                self._changed.notify_all()
            return True
        config = config_or_none(run)
        beside = self._company(config)
        pause = partial(run.request, Request.PAUSE)
        try:
            hold = self._card.hold("training", run.name(config), run_id=run.id, beside=beside, release=pause)
        except RunError:
            blocker = self._card.blocker(beside)
            with self._changed:
                self._waiting_for = blocker
            if blocker is not None:
                self._make_room(blocker)
            return False
        with hold:
            with self._changed:
                self._waiting_for = None
                if self._is_closed or self._next() != run:
                    return True
                self._take(run)
                self._current = run
            try:
                with self._changed:
                    self._remember()
                self._run(run)
            except Exception as error:
                self._give_up(run, error)
            finally:
                with self._changed:
                    self._current = None
                    again, self._is_wanted_again = self._is_wanted_again, False
                    if again and not self._is_closed:
                        self._put_back(run)
                    self._changed.notify_all()
        return True

    def _give_up(self, run: RunDir, error: Exception) -> None:
        """Leave a run that could not be worked on; it says why where that can still be written."""
        log.error("run %s could not be worked on", run.id, exc_info=error)
        end_unstarted(run, error)
        with self._changed:
            self._take(run)
            self._remember()
            self._changed.notify_all()

    def _company(self, config: RunConfig | None) -> Collection[str]:
        return {holder.who for holder in self._card.holders() if config is not None and self._fits_beside(config, holder)}

    def _run(self, run: RunDir) -> None:
        left_with = ""
        config = config_or_none(run)
        if run.owner_is_alive():
            process.wait_for_end(run, until=lambda: self._is_closed)
        elif config is not None and has_own_process(config):
            process.run_in_process(run, config, until=lambda: self._is_closed)
        else:
            left_with = thread.run_in_thread(run, self._card.turns)
        if not self._is_closed:
            end_unended(run, left_with)


def ask(run: RunDir, request: Request) -> str:
    """Ask the job of a live run for something and return the sentence for the user; needs no launcher.

    Raises RunError where no job works on the run.
    """
    view = read_run(run)
    if not view.status.is_live and not (view.status is Status.QUEUED and run.owner_is_alive()):
        raise RunError(
            f"Run {run.id} is not running any more; it is {view.status.value}.", fix="Look at the page again", code="run-not-live"
        )
    run.request(request)
    after = "after this step" if view.steps else "as soon as this phase allows"
    return request.promise(f"{after}, in about {format_duration(max(view.step_s, 1.0))}" if view.step_s else after)
