"""A job in a process of its own, under `accelerate launch`: isolation, several cards, several machines, and it outlives the app."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qlora_ui.hardware.gpu import given_environment
from qlora_ui.runs.parts import clear_failures
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings.run_config import RunConfig

POLL_S = 0.5
JOB = "qlora_ui.engine.job"
ROOT = Path(__file__).resolve().parents[2]


def launch_command(run: RunDir, config: RunConfig) -> list[str]:
    """The words that start the job; the same on every machine but for `launch.machine_rank`."""
    launch = config.launch
    processes = launch.num_processes * launch.num_machines
    port = launch.main_port or (free_port() if launch.num_machines == 1 else 29500)
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
    """Start the job and wait for its end, or until the app closes (the job goes on)."""
    # A run in a thread leaves the app one card; this one may need all that the user gave.
    environment = given_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    # Nothing is imported from the run's folder, which the job works in: it may come from somebody else.
    environment |= {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
    clear_failures(run)
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
    while child.poll() is None and not until():
        time.sleep(POLL_S)


def wait_for_owner(run: RunDir, *, until: Callable[[], bool]) -> None:
    """Wait for the end of a job that somebody else started."""
    while run.owner_is_alive() and not until():
        time.sleep(POLL_S)


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
