"""A model that FSDP has split over cards: the adapter's tensors out of their shards and back into them.

peft 0.21 looks for an adapter's tensors by the names of modules, which FSDP changes: it would write and read none of them. Gathering the
whole model's state, as transformers does for a checkpoint, would bring the base along. Here only the trained layers are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from peft import get_peft_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

WRAPPED = "_fsdp_wrapped_module."


def move_scales(model: Any, device: torch.device) -> None:
    """Put the scales of the 4-bit weights on `device`: FSDP moves the weights, a layer at a time, and does not know of the scales."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.quant_state.to(device)


def adapter_names(model: Any) -> dict[str, str]:
    """Names of the adapter's tensors in its file, by their names in the PEFT model before it is split."""
    inside = {tensor.data_ptr(): name for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {inside[tensor.data_ptr()]: name for name, tensor in saved.items()}


def gather_adapter(model: Any, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The whole adapter by the names of its file, in main memory of the first process; nothing in the others. All must call it."""
    tensors = {}
    for prefix, unit in _trained_units(model):
        with FSDP.summon_full_params(unit, recurse=False, writeback=False, rank0_only=True, offload_to_cpu=True):
            for name, parameter in unit.named_parameters(prefix):
                if (saved := names.get(name.replace(WRAPPED, ""))) and torch.distributed.get_rank() == 0:
                    tensors[saved] = parameter.detach().clone()
    return tensors


def scatter_adapter(model: Any, names: dict[str, str], tensors: dict[str, torch.Tensor]) -> int:
    """Write the tensors of an adapter's file into the shards and return how many there were. All processes must call it."""
    num_written = 0
    for prefix, unit in _trained_units(model):
        with torch.no_grad(), FSDP.summon_full_params(unit, recurse=False, writeback=True):
            for name, parameter in unit.named_parameters(prefix):
                if saved := names.get(name.replace(WRAPPED, "")):
                    parameter.copy_(tensors[saved])
                    num_written += 1
    return num_written


def _trained_units(model: Any) -> Iterator[tuple[str, Any]]:
    """The FSDP modules whose own parameters are trained, with their names; the auto-wrap policy makes one of each LoRA matrix."""
    # The first to be gathered takes itself for the outermost: before the first forward pass that must be the model.
    with FSDP.summon_full_params(model, recurse=False, writeback=False):
        pass
    for name, module in model.named_modules():
        if isinstance(module, FSDP) and any(parameter.requires_grad for parameter in module.module.parameters(recurse=False)):
            yield name, module
