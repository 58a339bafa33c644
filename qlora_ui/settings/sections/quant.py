"""Options: how small the base is kept."""

from __future__ import annotations

from typing import Literal

from qlora_ui.settings.option import Section, option
from qlora_ui.settings.sections.papers import QLORA


class QuantSection(Section):
    """How small the base is kept."""

    type: Literal["nf4", "fp4"] = option(
        "nf4",
        "NF4's 16 levels follow the spread of trained weights and lose less than FP4's.",
        label="4-bit format",
        term="quant type",
        tier="basic",
        to="bnb.bnb_4bit_quant_type",
        source=QLORA,
        affects=("quality",),
        choices={"nf4": "NF4", "fp4": "FP4"},
    )
    double_quant: bool = option(
        True,
        "Also shrinks the scale numbers of the 4-bit blocks: about 0.4 bit a weight less memory, a little slower.",
        label="Compress the scales too",
        term="double quantization",
        tier="basic",
        to="bnb.bnb_4bit_use_double_quant",
        source=QLORA,
        affects=("memory", "time"),
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "The number format of the arithmetic. Automatic: bf16, fp16 on cards before Ampere, fp32 on a CPU.",
        label="Arithmetic",
        term="compute dtype",
        to="bnb.bnb_4bit_compute_dtype",
        source=QLORA,
        affects=("memory", "time"),
        choices={"auto": "Automatic", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"},
    )
    storage: Literal["uint8", "bfloat16"] = option(
        "uint8",
        "How the packed 4-bit numbers are stored; only sharding over several cards (FSDP) needs bf16.",
        label="Storage of the 4-bit weights",
        term="quant storage",
        to="bnb.bnb_4bit_quant_storage",
        choices={"uint8": "uint8", "bfloat16": "bf16 (for FSDP)"},
    )
