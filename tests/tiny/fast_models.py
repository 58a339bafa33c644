"""Two-layer 4-bit models of every family the fast path knows, with random weights and an adapter that is not zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

COMMON: dict[str, Any] = dict(
    vocab_size=160,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=True,
)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 9, "head_dim": 16},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def build(
    family: str,
    folder: Path,
    *,
    rank: int = 4,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype = torch.uint8,
) -> Any:
    """Return a PeftModel over an NF4 base in `dtype`, in training mode, its adapter's b matrices filled."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
    if not (folder / "config.json").exists():
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=storage,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=dtype, device_map={"": device}, attn_implementation="eager"
    )
    for p in base.parameters():
        p.requires_grad_(False)
    torch.manual_seed(2)  # writing the base, the first time, has used random numbers
    model = get_peft_model(
        base,
        LoraConfig(r=rank, lora_alpha=8, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.1)
    model.train()
    return model


def packed_batch(lengths: list[int], total: int) -> dict[str, Any]:
    """Return one packed row of documents of these lengths and a padded tail, with cumulative lengths that repeat the total."""
    generator = torch.Generator().manual_seed(5)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    if sum(lengths) < total:
        starts.append(sum(lengths))
    ids = torch.randint(3, 160, (1, total), generator=generator)
    first = torch.zeros(total, dtype=torch.int64)
    first[torch.tensor(starts)] = torch.tensor(starts)
    positions = torch.arange(total) - first.cummax(0).values
    labels = ids.clone()
    labels[0, torch.tensor(starts)] = -100
    labels[0, sum(lengths) :] = -100
    cumulative = torch.tensor([*starts, total, total], dtype=torch.int32)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions[None],
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": total,
        "max_length_k": total,
    }
