"""What an export will take, before it is started: size, memory, disk. From headers only; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.errors import ModelError, QloraUiError
from qlora_ui.base.files import size_of_tree
from qlora_ui.base.units import KIB, MIB
from qlora_ui.models.folder import read_header, weight_files
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS, RunDir
from qlora_ui.settings.sections import LoraSection

Q8_0_BYTES = 34 / 32
"""A block of 32 weights takes 32 bytes and a 2-byte scale."""
NF4_BYTES = 0.516
"""4 bits, 8-bit scales per 64 weights, and their fp32 scales per 256."""
CARD_BYTES = 64 * KIB
"""The model card and what else is text."""
TORCH_BYTES = 700 * MIB
"""A Python process with torch and transformers loaded."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """An upper estimate of what an export takes."""

    size_bytes: int
    """Of the finished folder."""
    disk_bytes: int
    """Needed while it is made."""
    memory_bytes: int
    """Main memory while it is made, Python and torch included."""
    check_bytes: int
    """Memory (of the card where there is one) while it is loaded again and compared with the chat."""


def plan_export(run: RunDir, base: Path | None, form: str) -> ExportPlan:
    """Size, disk and memory of an export of this run; `base` is the folder of its base model, None where an adapter goes without.

    Raises QloraUiError where the form has no place for what the run trained, and ModelError where the base's folder is gone.
    """
    adapter = _adapter_bytes(run, base) + CARD_BYTES
    if form == "adapter" and (base is None or not base.is_dir()):
        if base is not None and not run.has_adapter and run.newest_checkpoint is not None:
            raise base_is_gone(base, "A checkpoint has no tokenizer; that of the base is put beside it.")
        return ExportPlan(adapter, adapter, TORCH_BYTES, 0)
    assert base is not None
    if not base.is_dir():
        raise base_is_gone(base)
    if form == "gguf-lora":
        _refuse_more_than_lora(run.config().lora)
    shapes = [entry["shape"] for file in weight_files(base) for entry in read_header(file).values()]
    num_params = sum(math.prod(shape) for shape in shapes)
    largest = max(math.prod(shape) for shape in shapes)
    small_files = 40 * MIB  # tokenizers of the largest vocabularies
    merged = 2 * num_params + small_files
    # stored, in fp32 before and after, and as bf16
    merge_memory = TORCH_BYTES + 12 * largest
    four_bits = TORCH_BYTES + round(NF4_BYTES * num_params) + 4 * largest
    whole = TORCH_BYTES + 4 * num_params
    q8 = round(Q8_0_BYTES * num_params) + small_files
    return {
        "adapter": ExportPlan(adapter, adapter, TORCH_BYTES, four_bits),
        "merged-dequantized": ExportPlan(merged, merged, merge_memory, whole),
        "merged-original": ExportPlan(merged, merged, merge_memory, whole),
        "gguf-f16": ExportPlan(merged, 2 * merged, merge_memory + 4 * largest, whole),
        "gguf-q8_0": ExportPlan(q8, merged + q8, merge_memory + 4 * largest, whole),
        # Two processes hold torch: ours and llama.cpp's converter.
        "gguf-lora": ExportPlan(adapter, adapter, 2 * TORCH_BYTES + 4 * adapter, 0),
        "ollama": ExportPlan(q8, merged + q8, merge_memory + 4 * largest, whole),
    }[form]


def _adapter_bytes(run: RunDir, base: Path | None) -> int:
    """Of the finished adapter, else of the newest checkpoint's with the base's tokenizer."""
    if run.has_adapter or run.newest_checkpoint is None:
        return size_of_tree(run.adapter)
    tokenizer = size_of_tree(base / "tokenizer.json") if base is not None else 0
    return size_of_tree(run.newest_checkpoint / ADAPTER_WEIGHTS) + tokenizer


def base_is_gone(base: Path, why: str = "All forms but the adapter alone are made of it.") -> ModelError:
    """The error of a run whose base was a folder that is not there any more."""
    return ModelError(
        f"The folder of the run's base model is gone: {base}.",
        why=why,
        fix="Put it back there; a link to where it is now will do.",
        code="model-missing",
    )


def _refuse_more_than_lora(lora: LoraSection) -> None:
    """Raise QloraUiError for what llama.cpp's adapters cannot hold; trained norms it would even leave out without a word."""
    beside = ", ".join(lora.modules_to_save)
    more = "This is DoRA." if lora.dora else f"This run also trained in full: {beside}." if beside else ""
    if not more and "embed_tokens" in lora.targets:
        more = "This one changes the embedding, too."
    if more:
        raise QloraUiError(
            "This adapter cannot become a GGUF of its own.",
            why=f"llama.cpp knows plain LoRA only. {more}",
            fix="Export the whole model as GGUF, which has everything in it.",
            code="export-gguf-lora",
        )
