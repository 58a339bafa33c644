"""A job in a process of its own, under `accelerate launch`: isolation, several cards, several machines, and it outlives the app."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from qlora_ui.base.errors import RunError
from qlora_ui.base.units import format_duration
from qlora_ui.hardware.gpu import given_environment
from qlora_ui.runs.events import Failed, Paused, PhaseChanged, Stopped
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.parts import clear_failures
from qlora_ui.runs.read import read_run
from qlora_ui.runs.run_dir import Request, RunDir, Status
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import LaunchSection

POLL_S = 0.5
REST_S = 40.0
"""Processes that are left when the first one of a job is gone have so long to end by themselves; accelerate gives them 30 seconds."""
MEETING_PORT = 29500
MEETING_S = 900.0
"""accelerate's patience with machines that do not come."""
JOB = "qlora_ui.engine.job"
ROOT = Path(__file__).resolve().parents[2]


def launch_command(run: RunDir, config: RunConfig) -> list[str]:
    """The words that start the job; the same on every machine but for `launch.machine_rank`."""
    launch = config.launch
    processes = launch.num_processes * launch.num_machines
    port = launch.main_port or (free_port() if launch.num_machines == 1 else MEETING_PORT)
    words = [sys.executable, "-m", "accelerate.commands.launch"]
    words += ["--num_processes", str(processes), "--num_machines", str(launch.num_machines), "--machine_rank", str(launch.machine_rank)]
    words += ["--main_process_ip", launch.main_host, "--main_process_port", str(port)]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if launch.sharding == "fsdp":
        words += fsdp_words()
    elif processes > 1:
        # Also on CPUs: with --cpu it would start one process only. The job itself says that it uses the CPU, over gloo.
        words += ["--multi_gpu"]
    elif launch.device == "cpu" or not has_card():
        words += ["--cpu"]
    return [*words, "--module", JOB, str(run.path)]


def fsdp_words() -> list[str]:
    """Sharding of base and adapter over the cards, with the 4-bit weights stored as bf16 (`quant.storage`)."""
    return [
        "--use_fsdp",
        "--fsdp_version",
        "1",
        "--fsdp_sharding_strategy",
        "FULL_SHARD",
        "--fsdp_auto_wrap_policy",
        "TRANSFORMER_BASED_WRAP",
        "--fsdp_use_orig_params",
        "false",
        "--fsdp_cpu_ram_efficient_loading",
        "false",
        "--fsdp_sync_module_states",
        "true",
        "--fsdp_state_dict_type",
        "FULL_STATE_DICT",
    ]


def run_in_process(run: RunDir, config: RunConfig, *, until: Callable[[], bool]) -> None:
    """Start the job and wait for its end, or until the app closes (the job goes on).

    Raises RunError where the machines of the run cannot meet.
    """
    detail = _meet(config.launch) if config.launch.num_machines > 1 else ""
    # A run in a thread leaves the app one card; this one may need all that the user gave.
    environment = given_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    # Nothing is imported from the run's folder, which the job works in: it may come from somebody else.
    environment |= {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
    end_processes([run])
    clear_failures(run)
    JournalWriter(run.journal_path).write(PhaseChanged(phase="launch", detail=detail))
    # Output goes to a file: a pipe that nobody reads would stop the job when the app is gone.
    with run.log_path.open("ab") as log:
        child = subprocess.Popen(
            launch_command(run, config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=run.path,
            env=environment,
            # It outlives the terminal of the app, and is no part of its Ctrl-C: on Windows by a console of its own, without a window.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    # Until the job itself claims the run: an app that is closed and opened meanwhile would start it a second time.
    run.claim(child.pid)
    wait_for_end(run, until=until)
    child.poll()


def _meet(launch: LaunchSection) -> str:
    """What this machine waits for, in a sentence; raises RunError where it would wait in vain."""
    host, port = launch.main_host, launch.main_port or MEETING_PORT
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port)}
    except OSError as error:
        fix = "Start a new run with the address of the first machine as its main host"
        raise RunError(f"No computer “{host}” is known here.", why=str(error), fix=fix, where="launch.main_host") from None
    with socket.socket() as probe:
        if launch.machine_rank == 0 and probe.connect_ex(("127.0.0.1", port)) == 0:
            what, fix = f"Port {port} is used by another program.", "End that, or start new runs with another main port on all machines"
            raise RunError(what, why="The machines of the run cannot meet there", fix=fix, where="launch.main_port")
    is_here = all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
    only = ", an address that other computers cannot reach" if is_here else ""
    others = "other machine" if launch.num_machines == 2 else f"{launch.num_machines - 1} other machines"
    return f"Waits for the {others} at {host}:{port}{only}; it gives up after {format_duration(MEETING_S)}."


def apart(launch: LaunchSection) -> Failed:
    """The end of a run whose machines did not meet."""
    return Failed(
        code="machines-apart",
        what="The machines of this run did not meet.",
        why=f"This one waited for {format_duration(MEETING_S)} at {launch.main_host}:{launch.main_port or MEETING_PORT}",
        fix="Start the run on all machines within that time, each with its own number, the same port, which no firewall may close, and the "
        "first machine's address as the main host. Putting it back into the queue tries the same address and port again; for others start "
        "a new run from this one",
    )


def wait_for_end(run: RunDir, *, until: Callable[[], bool]) -> None:
    """Wait until nothing of a job is left, whoever started it, or until the app closes.

    Not the launcher's end: killed, it leaves processes that go on. What is left after the first process has gone may wait for it for ever,
    on a card, and is ended. A job that has not begun, as one that waits for other machines, hears nobody: for a stop it is ended, too.
    """
    alone_since: float | None = None
    while not until():
        if run.owner_is_alive():
            alone_since = None
            if _ends_unbegun(run):
                return
        elif not processes_of([run]):
            return
        elif alone_since is None:
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since > REST_S and _is_left_behind(run):
            end_processes([run])
        time.sleep(POLL_S)


def _is_left_behind(run: RunDir) -> bool:
    """Whether nothing can come of what is left: the first process was killed, the run has ended, or its folder was deleted."""
    return run.has_owner() or read_run(run).ended is not None or not run.path.is_dir()


def _ends_unbegun(run: RunDir) -> bool:
    """End a job that was asked to end before it has begun; returns whether that is so."""
    asked = {*run.pending_requests()} - {Request.SAVE_NOW}
    if not asked or read_run(run).status is not Status.QUEUED:
        return False
    end_processes([run])
    for request in Request:
        run.take_request(request)
    JournalWriter(run.journal_path).write(Paused() if asked == {Request.PAUSE} else Stopped(), durable=True)
    run.release()
    return True


def processes_of(runs: Collection[RunDir]) -> list[psutil.Process]:
    """All processes of the runs' jobs that live on this machine, their launchers first."""
    paths = {str(run.path) for run in runs}
    found = []
    for process in psutil.process_iter(["cmdline", "status", "create_time"]) if paths else ():
        words = process.info["cmdline"] or []
        if words[-2:-1] == [JOB] and words[-1] in paths and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def end_processes(runs: Collection[RunDir]) -> None:
    """Kill what is left of jobs that are over, or have not begun."""
    left = processes_of(runs)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def last_words(run: RunDir) -> str:
    """The end of run.log, for a failure that left no event."""
    try:
        with run.log_path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " ".join(line.strip() for line in lines if line.strip())[-400:]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def has_card() -> bool:
    """Whether this machine has an NVIDIA card, without asking torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or sys.platform == "win32"
