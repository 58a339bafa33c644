"""Which number format the arithmetic has: one rule for the estimate, the job, chat and the script."""

from __future__ import annotations

from qlora_ui.settings.sections import QuantSection

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def compute_dtype(quant: QuantSection, *, is_cpu: bool, supports_bf16: bool) -> str:
    """The dtype of the arithmetic by name: the chosen one, else bf16, fp16 on cards before Ampere, fp32 on a CPU.

    A CPU computes in fp32 even where it knows bf16: torch's bf16 kernels are no faster on most, and fp32 repeats exactly.
    """
    if quant.compute_dtype != "auto":
        return quant.compute_dtype
    if is_cpu:
        return "float32"
    return "bfloat16" if supports_bf16 else "float16"


def adapter_bytes(dtype: str) -> int:
    """Bytes of one trained number: TRL casts adapters of a 4-bit base to bf16; fp16 needs fp32 adapters for its loss scaling."""
    return 2 if dtype == "bfloat16" else 4
