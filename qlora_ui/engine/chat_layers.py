"""Decoder layers of a chat's decode step: one new token a row, through kernels that read the 4-bit weights and the cache directly.

transformers' layers launch 45 small kernels each for one token; these launch 15. They stand beside a layer's own forward, which keeps
all other passes: prompts, models of other families, adapters that are more than LoRA. Shapes: M rows (1 or 2), H model width.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from qlora_ui.engine.chat_cache import ChatCache, SlotLayer
from qlora_ui.engine.fast import layer_ops
from qlora_ui.engine.fast.apply import FAMILIES, PRE_NORM_FAMILIES
from qlora_ui.engine.fast.layers import MAX_RANK, FusedAttention, FusedMlp, FusedNorm, NotFusable
from qlora_ui.engine.fast.ops import uses_triton
from qlora_ui.engine.fast.rope import HeadNorm, rotate
from qlora_ui.engine.fast.token_ops import MAX_GROUP_HEADS, MAX_ROWS, TokenAttention, TokenLora, TokenProjection

log = logging.getLogger(__name__)

Loras = Mapping[str, TokenLora]
"""An adapter's parts of one layer, by the projection's name; one that it leaves alone is absent."""


@dataclass(slots=True)
class TokenStep:
    """The pass under way, shared by all layers; `cache` is None outside passes of single tokens."""

    cache: ChatCache | None = None
    adapter: str | None = None
    factors_M: torch.Tensor | None = None


@dataclass(frozen=True)
class TokenLayer:
    """One layer's own parts, in 4 bits; `after_attention` and `after_mlp` are Gemma's norms of what joins the residual."""

    index: int
    first_norm: FusedNorm
    qkv: TokenProjection
    head_norm: HeadNorm | None
    attention: TokenAttention
    rotates: bool
    out: TokenProjection
    after_attention: FusedNorm | None
    second_norm: FusedNorm
    gate_up: TokenProjection
    gelu: bool
    down: TokenProjection
    after_mlp: FusedNorm | None
    loras: dict[str, Loras] = field(default_factory=dict)
    """By the adapter's key."""

    @classmethod
    def read(cls, layer: Any, config: Any, index: int) -> TokenLayer:
        """Read a layer without adapters; raises NotFusable where it has parts that the kernels do not know."""
        sandwich = config.model_type not in PRE_NORM_FAMILIES
        activation = config.hidden_activation if sandwich else config.hidden_act
        attention, mlp = FusedAttention.read(layer.self_attn, None, 0), FusedMlp.read(layer.mlp, activation, None, 0)
        heads = attention.heads
        if attention.head_norm is not None and not attention.rotates:
            raise NotFusable("heads are normed and not rotated")
        if heads.num_q % heads.num_k or heads.num_q // heads.num_k > MAX_GROUP_HEADS:
            raise NotFusable("too many heads share one")
        return cls(
            index,
            FusedNorm.read(layer.input_layernorm),
            TokenProjection(attention.qkv.frozen.layers),
            attention.head_norm,
            TokenAttention(heads, attention.scale, attention.window, attention.softcap),
            attention.rotates,
            TokenProjection(attention.out.frozen.layers),
            FusedNorm.read(layer.post_attention_layernorm) if sandwich else None,
            FusedNorm.read(layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm),
            TokenProjection(mlp.gate_up.frozen.layers),
            mlp.gelu,
            TokenProjection(mlp.down.frozen.layers),
            FusedNorm.read(layer.post_feedforward_layernorm) if sandwich else None,
        )

    def projections(self) -> dict[str, TokenProjection]:
        """Its projections by the names that `loras` uses."""
        return {"qkv": self.qkv, "out": self.out, "gate_up": self.gate_up, "down": self.down}

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], states: SlotLayer, step: TokenStep) -> torch.Tensor:
        """The layer's output (M, H) for x (M, H)."""
        loras: Loras = self.loras[step.adapter] if step.adapter is not None else {}
        factors = step.factors_M
        qkv = self.qkv(_normed(self.first_norm, x)[1], loras.get("qkv"), factors)
        mixed = self._attend(qkv, rotary, states)
        if self.after_attention is None:
            x = self.out(mixed, loras.get("out"), factors, residual=x)
            normed = _normed(self.second_norm, x)[1]
        else:
            joined = _normed(self.after_attention, self.out(mixed, loras.get("out"), factors))[1]
            x, normed = _normed(self.second_norm, x, joined)
        hidden = layer_ops.gated(self.gate_up(normed, loras.get("gate_up"), factors), None, (), gelu=self.gelu)
        if self.after_mlp is None:
            return self.down(hidden, loras.get("down"), factors, residual=x)
        return x + _normed(self.after_mlp, self.down(hidden, loras.get("down"), factors))[1]

    def _attend(self, qkv: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], states: SlotLayer) -> torch.Tensor:
        heads = self.attention.heads
        rotated = qkv
        if self.rotates:
            cos, sin = (angles.reshape(-1, angles.shape[-1]).expand(qkv.shape[0], -1) for angles in rotary)
            rotated = rotate(qkv, heads, cos, sin, self.head_norm)
        slots = states.slots
        assert slots.rows_B1 is not None and slots.positions_BT is not None
        return self.attention(rotated, qkv, states.keys, states.values, slots.rows_B1, slots.positions_BT)


class TokenLayers:
    """The layers of a model that can decode this way; `reason` says why none can."""

    def __init__(self, model: Any) -> None:
        """Read a base model whose adapters, if it has any, are not switched off, and stand beside its layers' forwards."""
        self._step = TokenStep()
        self.reason = ""
        self._layers: list[TokenLayer] = []
        self._known: set[str] = set()
        try:
            layers = _decoder_layers(model)
            config = model.config.get_text_config()
            self._layers = [TokenLayer.read(layer, config, index) for index, layer in enumerate(layers)]
        except NotFusable as obstacle:
            self.reason = str(obstacle)
            return
        for layer, token_layer in zip(layers, self._layers, strict=True):
            layer.forward = functools.partial(_forward, self._step, token_layer, layer.forward)

    def install(self, peft_model: Any) -> None:
        """Look at the adapters again after one was loaded or removed."""
        self.forget_adapters()
        by_base = {module.get_base_layer(): module for module in peft_model.modules() if isinstance(module, LoraLayer)}
        names = {name for module in by_base.values() for name in module.lora_A}
        for name in names:
            try:
                self._take(name, by_base)
            except NotFusable:
                continue
            self._known.add(name)

    def forget_adapters(self) -> None:
        """Let go of every adapter's weights."""
        self._known = set()
        for layer in self._layers:
            layer.loras.clear()

    def can(self, names: Sequence[str], shape: Sequence[int]) -> bool:
        """Whether the layers can compute a pass of (rows, tokens) `shape` through these adapters: single tokens, at most one adapter."""
        rows, tokens = shape
        return bool(self._layers) and tokens == 1 and rows <= MAX_ROWS and len(names) <= 1 and self._known.issuperset(names)

    @contextlib.contextmanager
    def aimed(self, cache: ChatCache, names: Sequence[str], factors: Sequence[torch.Tensor | None]) -> Iterator[None]:
        """Within, the model's layers compute the pass this way; `factors` has one for each adapter, None where all rows go through it."""
        factor = next(iter(factors), None)
        step = self._step
        step.cache, step.adapter, step.factors_M = cache, next(iter(names), None), None if factor is None else factor.flatten()
        try:
            yield
        finally:
            step.cache = step.adapter = step.factors_M = None

    def switch_off(self, reason: str) -> None:
        """Leave every pass to the model's own layers from now on."""
        log.warning("The chat's own layers are switched off: %s", reason)
        self.reason = reason
        self._layers = []

    def _take(self, name: str, by_base: Mapping[Any, Any]) -> None:
        for layer in self._layers:
            parts = {part: _lora(projection, by_base, name) for part, projection in layer.projections().items()}
            layer.loras[name] = {part: lora for part, lora in parts.items() if lora is not None}


def _decoder_layers(model: Any) -> Sequence[Any]:
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise NotFusable(f"the architecture {config.model_type} has not been tried with it")
    if not uses_triton(model.get_input_embeddings().weight):
        raise NotFusable("Triton does not work here")
    layers: Sequence[Any] = model.get_decoder().layers
    return layers


def _lora(projection: TokenProjection, by_base: Mapping[Any, Any], name: str) -> TokenLora | None:
    """The adapter's parts for layers that share an input; None where it leaves them alone. Raises NotFusable for other forms."""
    own = [by_base.get(layer) for layer in projection.layers]
    own = [module if module is not None and name in module.lora_A else None for module in own]
    first = next((module for module in own if module is not None), None)
    if first is None:
        return None
    a, b = first.lora_A[name].weight, first.lora_B[name].weight
    parts = []
    for module, size in zip(own, projection.sizes, strict=True):
        if module is None:
            # Costs less than kernels for every selection of layers.
            parts.append((torch.zeros_like(a), b.new_zeros(size, b.shape[1]), 0.0))
            continue
        if name in module.lora_variant or module.lora_B[name].bias is not None or a.shape[0] > MAX_RANK:
            raise NotFusable("the adapter is not plain LoRA")
        parts.append((module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name])))
    if len({part[0].shape for part in parts}) > 1:
        raise NotFusable("the adapter's ranks differ")
    return TokenLora(*map(tuple, zip(*parts, strict=True)))


def _normed(norm: FusedNorm, x: torch.Tensor, delta: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its norm)."""
    return layer_ops.norm(x, norm.weight, norm.eps, norm.offset, delta, exact=False)[:2]


def _forward(step: TokenStep, token_layer: TokenLayer, original: Any, hidden_MTH: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A decoder layer's forward: ours for the pass of `step` once the cache has buffers, else its own."""
    states = step.cache.layer(token_layer.index) if step.cache is not None else None
    if states is None or not states.is_initialized:
        return original(hidden_MTH, *args, **kwargs)
    return token_layer.forward(hidden_MTH[:, 0], kwargs["position_embeddings"], states, step)[:, None]
