"""The 4-bit base model, ready for an adapter: what chat, training, evaluation and exports all load it with.

`prepare_model_for_kbit_training` is not used: it makes embeddings, norms and output layer fp32 (2 GiB more for a vocabulary
of 128k). Its contract holds without it: base weights are frozen when the adapter is attached, transformers' norms compute in
fp32 whatever they are stored in, and the trainer makes the inputs require a gradient when activations are recomputed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from qlora_ui.base.errors import HardwareError
from qlora_ui.engine.split import move_scales
from qlora_ui.hardware.gpu import read_gpus, see_only
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import bnb_arguments


def see_one_card() -> None:
    """Leave this process one card, the emptiest, unless a launcher or the user has chosen: SFTTrainer refuses several.

    Has an effect only before CUDA is initialised; a process under `accelerate launch` is left alone.
    """
    if "LOCAL_RANK" in os.environ or torch.cuda.is_initialized():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and "," not in visible:
        return
    cards = read_gpus()
    if len(cards) > 1:
        see_only(max(cards, key=lambda card: card.free_bytes).uuid)


def training_device(config: RunConfig) -> torch.device:
    """The device that the run works on; raises HardwareError where a card is asked for and there is none."""
    wanted = config.launch.device
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        needed, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if needed > cards:
            raise HardwareError(
                f"The run wants {needed} graphics cards, and this machine has {cards}.",
                why="Each process of a run drives a card of its own",
                fix=f"Start a new run with “Cards” at {cards}",
                where="launch.num_processes",
                code="too-few-cards",
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if wanted == "cuda":
        raise HardwareError(
            "There is no graphics card that torch can use.",
            why="CUDA is not available: no NVIDIA card, no driver, or a torch built without CUDA",
            fix="Set the device to automatic or CPU, or look at “python app.py doctor”",
            where="launch.device",
            code="no-card",
        )
    return torch.device("cpu")


def compute_dtype(config: RunConfig, device: torch.device) -> str:
    """The arithmetic's number format by name: the chosen one, else bf16, fp16 on cards before Ampere, fp32 on a CPU."""
    if config.quant.compute_dtype != "auto":
        return config.quant.compute_dtype
    if device.type == "cpu":
        return "float32"
    # torch's own answer counts emulation as support; the capability does not.
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def load_quantized(
    model_folder: Path, config: RunConfig, device: torch.device, *, attention: str | None = None, to_split: bool = False
) -> Any:
    """The base model in 4 bits on `device`, frozen by whoever attaches an adapter.

    `attention` overrides the choice of the settings (packed training brings its own). A base `to_split` may be larger than one card: it
    stays in main memory, from which FSDP takes it a layer at a time.
    """
    if to_split and device.type == "cpu":
        raise HardwareError(
            "There are no graphics cards to split the base over.",
            why="Each process of such a run drives one NVIDIA card and holds its part of the base; torch sees none",
            fix="Switch the splitting off, or start the run on a machine with two or more cards",
            where="launch.sharding",
            code="no-card",
        )
    dtype = compute_dtype(config, device)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder,
        quantization_config=BitsAndBytesConfig(**bnb_arguments(config, dtype)),
        dtype=getattr(torch, dtype),
        attn_implementation=attention or attention_kernel(model_folder, config),
        device_map={"": device.index or 0 if device.type == "cuda" and not to_split else "cpu"},
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
    )
    keep_plain_layout(model)
    if to_split:
        move_scales(model, device)
    model.config.use_cache = False
    return model


def attention_kernel(model_folder: Path, config: RunConfig) -> str:
    """`sdpa`, or `eager` where the model caps its scores, which SDPA would silently leave out (Gemma 2)."""
    if config.model.attention != "auto":
        return config.model.attention
    text = AutoConfig.from_pretrained(model_folder, trust_remote_code=False, local_files_only=True).get_text_config()
    return "eager" if getattr(text, "attn_logit_softcapping", None) else "sdpa"


def keep_plain_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    The first evaluation would rewrite them in place and send the gradients that follow through a kernel without a backward
    pass: no error, wrong numbers. Remove when bitsandbytes' repacked layout can be trained through.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def keep_layers(model: Any, num_kept: int) -> int:
    """Exempt the last `num_kept` decoder layers from recomputation (call when checkpointing is on); returns how many were."""
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing") and hasattr(module, "self_attn")]
    kept = layers[len(layers) - min(num_kept, len(layers)) :]
    for layer in kept:
        layer.gradient_checkpointing = False
    return len(kept)


def num_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters, packed 4-bit weights counted as the weights that they hold."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = 0
    for parameter in model.parameters():
        if isinstance(parameter, bnb.nn.Params4bit) and parameter.quant_state is not None:
            total += parameter.quant_state.shape.numel()
        else:
            total += parameter.numel()
    return trainable, total
