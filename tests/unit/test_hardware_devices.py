"""Devices that are named, listed and stored."""

from __future__ import annotations

import pytest

from qlora_ui.base.errors import HardwareError
from qlora_ui.base.units import GIB, MIB
from qlora_ui.hardware.cards import KNOWN_CARDS, find_card
from qlora_ui.hardware.devices import (
    ASSUMED_CONTEXT_BYTES,
    card_profile,
    cpu_profile,
    forget_learned,
    named_device,
    store_context,
    store_ratio,
    stored_context,
)
from qlora_ui.hardware.gpu import GpuState
from qlora_ui.hardware.system import read_system, versions
from qlora_ui.runs.workspace import Workspace


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("RTX 4060", "RTX 4060"),
        ("4060 8 GB", "RTX 4060"),
        ("rtx 4060 ti", "RTX 4060 Ti"),
        ("RTX 4060 Ti 16GB", "RTX 4060 Ti 16 GB"),
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3080", "RTX 3080"),
        ("3080 12 GB", "RTX 3080 12 GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("A100-PCIE-40GB", "A100 40 GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("V100", "V100 16 GB"),
        ("2080", "RTX 2080"),
        ("4070 Super", "RTX 4070 Super"),
        ("RTX 4080 Super", "RTX 4080 Super"),
        ("RTX 3080 Ti", "RTX 3080 Ti"),
        ("NVIDIA GeForce RTX 4080 Laptop GPU", "RTX 4080 Laptop"),
        ("RTX 5090 Laptop", "RTX 5090 Laptop"),
        ("5070 Ti mobile", "RTX 5070 Ti Laptop"),
    ],
)
def test_find_card(words: str, name: str) -> None:
    card = find_card(words)
    assert card is not None and card.name == name


@pytest.mark.parametrize(
    "words", ["RTX 3070 Laptop GPU", "RTX 5060 Ti Super", "H100 NVL", "RTX A5000 Laptop GPU", "RTX", "Ti", "Super", "GPU"]
)
def test_another_card_of_a_family_is_not_taken_for_the_listed_one(words: str) -> None:
    with pytest.raises(HardwareError, match="There is no card"):
        named_device(words)


@pytest.mark.parametrize(
    ("words", "gib"),
    [("4070 Super", 12), ("5090 Laptop", 24), ("5080 Laptop", 16), ("5070 Ti Laptop", 12), ("5070 Laptop", 8), ("4090 Laptop", 16),
     ("4080 Laptop", 12), ("4070 Laptop", 8)],
)  # fmt: skip
def test_a_laptop_has_its_own_memory(words: str, gib: int) -> None:
    card = find_card(words)
    assert card is not None and card.gib == gib


def test_every_card_is_found_by_its_own_name() -> None:
    for card in KNOWN_CARDS:
        assert find_card(card.name) == card and find_card(card.label) is not None


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * GIB), ("12 GiB", 12 * GIB), ("16", 16 * GIB), ("8589934592", 8 * GIB)])
def test_a_size_is_a_device(text: str, size: int) -> None:
    device = named_device(text)
    assert device.total_bytes == size and not device.is_present and device.context_source == "assumed"


def test_an_unknown_card_names_the_known_ones() -> None:
    with pytest.raises(HardwareError, match="RTX 4060"):
        named_device("Voodoo 2")


def test_a_card_of_this_machine(workspace: Workspace) -> None:
    gpu = GpuState(0, "GPU-1", "NVIDIA GeForce RTX 4060 Ti", 16380 * MIB, 1000 * MIB, 300 * MIB, compute_capability=(8, 9))
    device = card_profile(gpu, workspace)
    assert device.others_bytes == 700 * MIB
    assert device.free_bytes == (16380 - 700) * MIB
    assert (device.context_bytes, device.context_source) == (ASSUMED_CONTEXT_BYTES, "assumed")
    assert device.watts == 165
    store_context(workspace, "GPU-1", gpu.name, 412 * MIB)
    assert card_profile(gpu, workspace).context_bytes == 412 * MIB
    assert card_profile(gpu, workspace).context_source == "measured"


def test_a_laptop_of_this_machine_has_not_the_figures_of_the_desktop_card(workspace: Workspace) -> None:
    gpu = GpuState(0, "GPU-1", "NVIDIA GeForce RTX 3070 Laptop GPU", 8192 * MIB, 0, 0, compute_capability=(8, 6))
    assert card_profile(gpu, workspace).watts is None


def test_an_implausible_context_is_not_kept(workspace: Workspace) -> None:
    store_context(workspace, "GPU-1", "x", 3 * MIB)
    assert stored_context(workspace, "GPU-1") is None
    (workspace.cache / "devices.json").write_text('{"GPU-1": "broken"}')
    assert stored_context(workspace, "GPU-1") is None


def test_cards_before_ampere_have_no_bf16() -> None:
    assert not named_device("T4").supports_bf16 and named_device("RTX 3060").supports_bf16


def test_the_processor() -> None:
    device, system = cpu_profile(), read_system()
    assert device.is_cpu and device.context_bytes == 0
    assert 0 < device.free_bytes <= device.total_bytes == system.ram_total_bytes
    assert system.num_cpus >= 1 and system.process_bytes > MIB


def test_versions_without_imports() -> None:
    found = versions()
    assert {"python", "torch", "bitsandbytes"} <= set(found)


def test_a_correction_counts_from_the_third_run_and_can_be_forgotten(workspace: Workspace) -> None:
    gpu = GpuState(0, "GPU-1", "NVIDIA GeForce RTX 4090", 24564 * MIB, 0, 0, compute_capability=(8, 9))
    store_context(workspace, "GPU-1", gpu.name, 412 * MIB)
    for ratio in (1.04, 1.08):
        store_ratio(workspace, "GPU-1", gpu.name, ratio)
    assert card_profile(gpu, workspace).correction == 1.0
    store_ratio(workspace, "GPU-1", gpu.name, 1.06)
    store_ratio(workspace, "GPU-1", gpu.name, 9.0)  # implausible, not kept
    profile = card_profile(gpu, workspace)
    assert (profile.correction, profile.num_learned) == (1.06, 3)
    forget_learned(workspace)
    assert card_profile(gpu, workspace).correction == 1.0
    assert stored_context(workspace, "GPU-1") == 412 * MIB
