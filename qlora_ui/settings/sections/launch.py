"""Options: where the job runs."""

from __future__ import annotations

from typing import Literal

from qlora_ui.settings.option import Section, option


class LaunchSection(Section):
    """Where the job runs."""

    where: Literal["thread", "process"] = option(
        "thread",
        "Thread: inside the app, shares the graphics card with chat. Process: on its own, outlives the app, uses several cards.",
        label="Run in",
        term="launcher",
        choices={"thread": "This app", "process": "Its own process (accelerate launch)"},
    )
    device: Literal["auto", "cuda", "cpu"] = option(
        "auto",
        "Automatic takes the graphics card if there is one.",
        label="Device",
        choices={"auto": "Automatic", "cuda": "Graphics card", "cpu": "CPU"},
        affects=("memory", "time"),
    )
    num_processes: int = option(
        1,
        "Graphics cards of this machine that share the work; needs its own process.",
        label="Cards",
        term="num processes",
        affects=("memory", "time"),
        ge=1,
        le=64,
    )
    sharding: Literal["none", "fsdp"] = option(
        "none",
        "FSDP splits the base over the cards when it does not fit one.",
        label="Split the base",
        term="FSDP",
        choices={"none": "No", "fsdp": "FSDP"},
        affects=("memory", "time"),
    )
    num_machines: int = option(1, "Hosts that share the work.", label="Machines", ge=1, le=64)
    machine_rank: int = option(0, "Number of this host, from 0.", label="This machine's number", term="machine rank", ge=0, le=63)
    main_host: str = option("127.0.0.1", "Address of host 0.", label="Main host")
    main_port: int = option(
        0, "Port on which the hosts meet; 0 picks a free one, for several hosts 29500.", label="Main port", ge=0, le=65535
    )
