"""Fused stand-ins for a decoder layer's modules, read off the Hugging Face modules that they replace.

The stand-ins own no parameters: they hold references to the model's frozen weights and to PEFT's adapter matrices. N tokens, H model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_ui.estimate.activations import tile_rows

from . import nodes
from .attention import VarlenPlan
from .dropout import Dropout
from .nodes import Projection
from .ops import MAX_GROUP, Adapter
from .recompute import Tape
from .rope import HeadNorm, Heads
from .tiled_mlp import tiled_mlp
from .weights import FrozenMatrix

MAX_RANK = 128  # a larger one does not fit the kernels' tiles


class NotFusable(Exception):
    """A module is not of a form that the fused layers know; the message says why, in words a user can read."""


@dataclass(frozen=True)
class Packing:
    """What a layer is told about the packed batch: document boundaries and the longest document possible."""

    cumulative: torch.Tensor
    max_length: int


def packing_of(layer: nn.Module, hidden: torch.Tensor, kwargs: dict[str, Any]) -> Packing | None:
    """Return the batch's packing where a fused module may run (training, one packed row, no cache), else None."""
    cumulative, longest = kwargs.get("cu_seq_lens_q"), kwargs.get("max_length_q")
    cached = kwargs.get("cache") is not None or kwargs.get("past_key_values") is not None
    if not layer.training or cached or cumulative is None or longest is None or hidden.shape[0] != 1:
        return None
    return Packing(cumulative, int(longest))


def read_projection(modules: Sequence[nn.Module], dropout: Dropout | None, first_salt: int) -> Projection:
    """Return modules that share an input as one projection; raises NotFusable for adapters that plain LoRA does not describe."""
    adapters: list[Adapter] = []
    column = 0
    for offset, module in enumerate(modules):
        frozen = base_of(module)
        if isinstance(module, LoraLayer):
            adapter = _read_adapter(module, first_salt + offset, column)
            if adapter is not None:
                adapters.append(adapter)
        column += int(frozen.out_features)
    if len({ad.a.shape[0] for ad in adapters}) > 1:
        raise NotFusable("the adapters of projections that share an input have different ranks")
    if len(adapters) > MAX_GROUP:
        raise NotFusable("more than three adapters share an input")
    return Projection(
        FrozenMatrix([base_of(m) for m in modules]), tuple(adapters), dropout if dropout is not None and dropout.active else None
    )


def base_of(module: nn.Module) -> Any:
    """Return the frozen linear layer of a module that may or may not carry an adapter."""
    layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if not isinstance(layer, nn.Linear):
        raise NotFusable(f"{type(layer).__name__} is not a linear layer")
    if layer.weight.requires_grad:
        raise NotFusable("a base weight is trained")
    return layer


def _read_adapter(module: Any, salt: int, column: int) -> Adapter | None:
    names = [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return None
    if len(names) > 1 or module.merged or module.disable_adapters:
        raise NotFusable("several adapters are active, or one is merged")
    name = names[0]
    a, b = module.lora_A[name], module.lora_B[name]
    if name in module.lora_variant or b.bias is not None:
        raise NotFusable("the adapter is not plain LoRA (DoRA or a bias)")
    if a.weight.shape[0] > MAX_RANK:
        raise NotFusable(f"LoRA rank {a.weight.shape[0]} is above {MAX_RANK}")
    return Adapter(a.weight, b.weight, float(module.scaling[name]), salt, column)


@dataclass(frozen=True)
class FusedNorm:
    """An RMS norm; `offset` is 1 for Gemma, whose weights are stored minus one."""

    weight: torch.Tensor
    eps: float
    offset: float
    is_exact: bool
    """Whether it computes what transformers' norm does to the last bit, as `Projection.is_exact` says of projections."""

    @classmethod
    def read(cls, module: nn.Module, *, exact: bool = False) -> "FusedNorm":
        """Read a transformers RMSNorm."""
        weight = getattr(module, "weight", None)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if (
            "RMSNorm" not in type(module).__name__
            or not isinstance(weight, torch.Tensor)
            or not isinstance(eps, float)
            or weight.requires_grad
        ):
            raise NotFusable(f"{type(module).__name__} is not a frozen RMS norm")
        return cls(weight, eps, 1.0 if type(module).__name__.startswith("Gemma") else 0.0, exact)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised x."""
        return nodes.rms_norm(x, self.weight, self.eps, self.offset, exact=self.is_exact)

    def fork(self, x: torch.Tensor, delta: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (x + delta, its norm)."""
        return nodes.fork_norm(x, delta, self.weight, self.eps, self.offset, exact=self.is_exact)


@dataclass(frozen=True)
class FusedAttention:
    """Self-attention of one layer: q, k, v as one product, norms and rotation in one pass, then the output projection."""

    qkv: Projection
    out: Projection
    heads: Heads
    head_norm: HeadNorm | None
    scale: float
    window: int | None
    softcap: float | None
    rotates: bool

    @classmethod
    def read(cls, module: Any, dropout: Dropout | None, salt: int) -> "FusedAttention":
        """Read a transformers attention module of one of the known families."""
        config = module.config
        if getattr(module, "attention_dropout", 0.0) or not getattr(module, "is_causal", True):
            raise NotFusable("attention has dropout of its own, or is not causal")
        fused = getattr(module, "qkv_proj", None)
        qkv = [fused] if fused is not None else [module.q_proj, module.k_proj, module.v_proj]
        head_norm = None
        if getattr(module, "q_norm", None) is not None:
            q_norm, k_norm = FusedNorm.read(module.q_norm), FusedNorm.read(module.k_norm)
            head_norm = HeadNorm(q_norm.weight, k_norm.weight, q_norm.eps, q_norm.offset)
        window = getattr(module, "sliding_window", None)
        if config.model_type in ("mistral", "phi3"):  # their modules read it off the config at call time
            window = getattr(config, "sliding_window", None)
        heads = Heads(config.num_attention_heads, config.num_key_value_heads, int(module.head_dim))
        return cls(
            read_projection(qkv, dropout, salt),
            read_projection([module.o_proj], dropout, salt + 3),
            heads,
            head_norm,
            float(module.scaling),
            window,
            getattr(module, "attn_logit_softcapping", None),
            bool(getattr(module, "use_rope", True)),
        )

    def __call__(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], packing: Packing, tape: Tape | None = None
    ) -> torch.Tensor:
        """Return the layer's attention output (N, H) for normed x (N, H); rotary is (cos, sin), each (1, N, dims)."""
        plan = VarlenPlan(packing.cumulative, packing.max_length, self.scale, self.window, self.softcap, is_exact=self.qkv.is_exact)
        angles = (rotary[0].reshape(x.shape[0], -1), rotary[1].reshape(x.shape[0], -1)) if self.rotates else None
        mixed = nodes.attend(nodes.project(x, self.qkv, tape), self.heads, angles, self.head_norm, plan)
        return nodes.project(mixed, self.out, tape)


@dataclass(frozen=True)
class FusedMlp:
    """A gated MLP: gate and up as one product, activation and both LoRA parts in one pass, then down."""

    gate_up: Projection
    down: Projection
    gelu: bool

    @classmethod
    def read(cls, module: Any, activation: str, dropout: Dropout | None, salt: int) -> "FusedMlp":
        """Read a transformers gated MLP (gate_proj and up_proj, or Phi's gate_up_proj)."""
        if activation not in ("silu", "swish", "gelu_pytorch_tanh"):
            raise NotFusable(f"activation {activation} has no fused form")
        fused = getattr(module, "gate_up_proj", None)
        gate_up = [fused] if fused is not None else [module.gate_proj, module.up_proj]
        return cls(
            read_projection(gate_up, dropout, salt + 4),
            read_projection([module.down_proj], dropout, salt + 6),
            activation.startswith("gelu"),
        )

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, tape: Tape | None = None) -> torch.Tensor:
        """Return the MLP's output (+ residual), (N, H)."""
        if tape is not None and (rows := tile_rows(*x.shape)) < x.shape[0]:
            return tiled_mlp(x, self.gate_up, self.down, residual, gelu=self.gelu, tape=tape, rows=rows)
        return nodes.gated_mlp(x, self.gate_up, self.down, residual, gelu=self.gelu, tape=tape)


@dataclass(frozen=True)
class FusedLayer:
    """A pre-norm decoder layer: x + attention(norm(x)), then + mlp(norm(.))."""

    first_norm: FusedNorm
    attention: FusedAttention
    second_norm: FusedNorm
    mlp: FusedMlp

    def dense_bytes(self, dtype: torch.dtype) -> int:
        """What the dequantized matrices take together that a recomputation and its backward pass both use: all but down's."""
        frozen = (self.attention.qkv.frozen, self.attention.out.frozen, self.mlp.gate_up.frozen)
        return sum(matrix.num_in * matrix.num_out * dtype.itemsize for matrix in frozen)

    def __call__(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], packing: Packing, tape: Tape | None = None
    ) -> torch.Tensor:
        """Return the layer's output (N, H); undefined where `tape` replays."""
        x, normed = self.first_norm.fork(x)
        x, normed = self.second_norm.fork(x, self.attention(normed, rotary, packing, tape))
        return self.mlp(normed, x, tape)
