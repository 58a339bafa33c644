"""Fuse a PEFT model's layers in place, and take the fusion back.

Only `forward` attributes of module instances are replaced; parameters, module names and `state_dict` keys stay. A replaced forward runs
fused in training on a packed row (`cu_seq_lens_q` among the arguments) and calls the original otherwise, so evaluation, generation and
the padded plain path are untouched.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .dropout import Dropout
from .host_embedding import can_move, move_to_host
from .layers import FusedAttention, FusedLayer, FusedMlp, FusedNorm, NotFusable, packing_of
from .loss import Head
from .ops import triton_failure
from .recompute import recomputed

PRE_NORM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")
SANDWICH_FAMILIES = ("gemma2", "gemma3_text")
FAMILIES = PRE_NORM_FAMILIES + SANDWICH_FAMILIES
_STATE = "qlora_fast_state"
_SALTS_PER_LAYER = 8


@dataclass(frozen=True)
class FastReport:
    """What was switched on, and why something was not, in words for the user."""

    active: bool
    parts: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass
class FastState:
    """What the captured step needs of a fused model; hangs on the model until `remove_fast_path`."""

    decoder: Any
    head: Head
    dropout: Dropout
    patched: list[nn.Module] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether its numbers are the plain step's to the last bit; dropout's masks are its own, so with it what is faster is taken."""
        return not self.dropout.active


def apply_fast_path(model: Any, *, dropout: float, num_kept_layers: int, packed: bool, embedding_on_host: bool = False) -> FastReport:
    """Fuse `model` (a PeftModel on one CUDA device) in place and report; leaves it plain where it cannot be fused.

    `dropout` is LoRA's rate. The last `num_kept_layers` decoder layers keep their activations, the others recompute them in backward; this
    replaces gradient checkpointing, whatever the trainer sets. `packed` says whether batches come packed, for the report only: padded
    batches run the same way, as rows of one document each. `embedding_on_host` moves the input embedding to pinned host memory where the
    head does not share it, which frees its bytes on the card (1.0 GiB at 8B).
    """
    reasons = _obstacles(model)
    if not reasons:
        try:
            fuse(model, dropout=dropout, num_kept_layers=num_kept_layers)
        except NotFusable as obstacle:
            remove_fast_path(model)
            reasons = (f"The fast path is off: {obstacle}.",)
    if reasons:
        return FastReport(False, (), reasons)
    num_layers = len(fast_state(model).decoder.layers)
    kept = max(0, min(num_kept_layers, num_layers))
    state = fast_state(model)
    embedding = state.decoder.get_input_embeddings()
    on_host = embedding_on_host and can_move(embedding, state.head.weight)
    if on_host:
        forward, restore = move_to_host(embedding)
        _replace(state, embedding, forward)
        state.undo.append(restore)
    parts = [
        "LoRA and base product as one node",
        "fused norms, rotary embedding and MLP",
        "loss in tiles",
        "packed attention" if packed else "attention per row",
        f"{num_layers - kept} of {num_layers} layers recomputed",
    ]
    if on_host:
        parts.append("input embedding in host memory")
    failure = triton_failure(state.head.weight.device)
    notes = (
        (f"Triton cannot be used ({failure}), so the layers run on plain torch operations; the step is still captured.",) if failure else ()
    )
    return FastReport(True, tuple(parts), notes)


def _obstacles(model: Any) -> tuple[str, ...]:
    parameters = list(model.parameters())
    devices = {p.device for p in parameters}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return ("The fast path needs the whole model on one NVIDIA GPU; the ordinary step runs instead.",)
    dtypes = {p.dtype for p in parameters if p.requires_grad}
    if dtypes != {torch.bfloat16}:
        return ("The fast path computes in bfloat16 with a bfloat16 adapter; this run uses another precision.",)
    return ()


def fast_state(model: Any) -> FastState:
    """Return the state of a fused model; raises LookupError where it is not fused."""
    state = model.__dict__.get(_STATE)
    if not isinstance(state, FastState):
        raise LookupError("The model is not fused.")
    return state


def fuse(model: Any, *, dropout: float, num_kept_layers: int) -> FastState:
    """Fuse without asking for a GPU (on the CPU the same nodes run on plain torch); raises NotFusable, maybe half way."""
    base = model.get_base_model()
    decoder, config = base.model, base.config
    if config.model_type not in FAMILIES:
        raise NotFusable(f"the architecture {config.model_type} has not been tried with it")
    head = _read_head(base)
    device = head.weight.device
    state = FastState(decoder, head, Dropout(dropout, torch.zeros(2, dtype=torch.int32, device=device)))
    model.__dict__[_STATE] = state
    first_kept = len(decoder.layers) - max(0, num_kept_layers)
    for index, layer in enumerate(decoder.layers):
        build = _pre_norm_forward if config.model_type in PRE_NORM_FAMILIES else _sandwich_forward
        _replace(state, layer, build(state, layer, config, index, index < first_kept))
    _replace(state, decoder.norm, _norm_forward(state, decoder.norm))
    _reject_other_trainables(model)
    return state


def remove_fast_path(model: Any) -> None:
    """Give every module its own forward back; does nothing where the model is not fused."""
    state = model.__dict__.pop(_STATE, None)
    if isinstance(state, FastState):
        for module in state.patched:
            module.__dict__.pop("forward", None)
        for restore in state.undo:
            restore()


def _replace(state: FastState, module: nn.Module, forward: Callable[..., Any]) -> None:
    module.__dict__["forward"] = forward
    state.patched.append(module)


def _read_head(base: Any) -> Head:
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or head.weight.requires_grad or type(head).__name__ == "Linear4bit":
        raise NotFusable("the language model head is trained, quantized or has a bias")
    return Head(head.weight.detach(), softcap=getattr(base.config, "final_logit_softcapping", None))


def _reject_other_trainables(model: Any) -> None:
    stray = next(
        (name for name, p in model.named_parameters() if p.requires_grad and ".lora_A." not in name and ".lora_B." not in name), None
    )
    if stray is not None:
        raise NotFusable(f"{stray} is trained beside the LoRA matrices")


def _norm_forward(state: FastState, module: nn.Module) -> Callable[..., torch.Tensor]:
    fused, original = FusedNorm.read(module, exact=state.is_exact), module.forward

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return fused(hidden_states) if module.training else original(hidden_states)

    return forward


def _pre_norm_forward(state: FastState, layer: Any, config: Any, index: int, recompute: bool) -> Callable[..., torch.Tensor]:
    """A whole layer at once: x + attention(norm(x)), then + mlp(norm(.))."""
    if getattr(config, "resid_pdrop", 0.0):
        raise NotFusable("the layers drop parts of their residual stream")
    salt = index * _SALTS_PER_LAYER
    fused = FusedLayer(
        FusedNorm.read(layer.input_layernorm, exact=state.is_exact),
        FusedAttention.read(layer.self_attn, state.dropout, salt),
        FusedNorm.read(layer.post_attention_layernorm, exact=state.is_exact),
        FusedMlp.read(layer.mlp, config.hidden_act, state.dropout, salt),
    )
    original = layer.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        packing = packing_of(layer, hidden_states, kwargs)
        if packing is None or args:
            result: torch.Tensor = original(hidden_states, *args, **kwargs)
            return result
        rotary = kwargs["position_embeddings"]
        flat = hidden_states[0]
        if not recompute:
            return fused(flat, rotary, packing)[None]
        return recomputed(flat, lambda x, tape: fused(x, rotary, packing, tape), fused.dense_bytes(flat.dtype))[None]

    return forward


def _sandwich_forward(state: FastState, layer: Any, config: Any, index: int, recompute: bool) -> Callable[..., torch.Tensor]:
    """Gemma: the layer's own forward with its norms, attention and MLP replaced one by one."""
    salt = index * _SALTS_PER_LAYER
    attention, mlp = (
        FusedAttention.read(layer.self_attn, state.dropout, salt),
        FusedMlp.read(layer.mlp, config.hidden_activation, state.dropout, salt),
    )
    plain_attention, plain_mlp, original = layer.self_attn.forward, layer.mlp.forward, layer.forward
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm):
        _replace(state, norm, _norm_forward(state, norm))

    def attention_forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        packing = packing_of(layer, hidden_states, kwargs)
        if packing is None or args:
            return plain_attention(hidden_states, *args, **kwargs)
        return attention(hidden_states[0], kwargs["position_embeddings"], packing)[None], None

    def mlp_forward(x: torch.Tensor) -> Any:
        if not layer.training or x.shape[0] != 1:
            return plain_mlp(x)
        return mlp(x[0], None)[None]

    _replace(state, layer.self_attn, attention_forward)
    _replace(state, layer.mlp, mlp_forward)

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not recompute or args or packing_of(layer, hidden_states, kwargs) is None:
            result: torch.Tensor = original(hidden_states, *args, **kwargs)
            return result
        layer.gradient_checkpointing = False  # recomputation is ours here; the trainer may have switched its own on
        return recomputed(hidden_states, lambda x, tape: original(x, **kwargs))

    return forward
