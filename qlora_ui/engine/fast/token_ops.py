"""A decode step's operations on Triton: a frozen projection of one or two single-token rows with its adapter, and attention to slots.

Shapes: M rows (1 or 2), K features in, J projections that share an input, R LoRA rank padded to a power of two, D head size, L slots.
Nothing here waits for the card, so all of it can be captured. For inference only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import byte_lookup
from .layers import NotFusable
from .ops import HAS_TRITON, cdiv, next_power_of_2
from .rope import Heads
from .weights import is_quantized, packed_bytes

if HAS_TRITON:
    from . import triton_token

MAX_ROWS = 2
"""Rows of a decode step: the base and an adapter side by side."""
MAX_GROUP_HEADS = 16
"""q heads that may share a k head."""
SLOTS = 64
"""Slots that a program of the attention reads at a time."""
MAX_PARTS = 32
FEATURES = 4
"""That a program of the product computes. With 1, 2 and 4 warps to share them it was the fastest tried, or within 4 % of it, on an H200
at the shapes of 1.5B and 8B models (tests/bench/token_product.py)."""
WARP_BLOCKS = 8
"""Blocks that a warp reads of each feature at a time."""
CARD_WARPS = 11
"""Warps that a launch has at least, for each multiprocessor, before features are left to one warp each; fitted on the same shapes."""


@dataclass(frozen=True)
class TokenLora:
    """An adapter's parts for a group of projections, all of one rank: a (rank, K), b (out, rank), the factors alpha / r."""

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    scales: tuple[float, ...]

    def inner(self, x: torch.Tensor, factors_M: torch.Tensor | None) -> torch.Tensor:
        """x (M, K) through every a, (M, J, R) fp32, times each row's factor."""
        rank, num, (rows, width) = self.a[0].shape[0], len(self.a), x.shape
        out = torch.empty(rows, num, next_power_of_2(rank), dtype=torch.float32, device=x.device)
        triton_token.token_inner[(num * rank, rows)](
            x,
            out,
            x if factors_M is None else factors_M,
            *_three(self.a),
            width,
            RANK=rank,
            R=out.shape[2],
            J=num,
            FACTOR=factors_M is not None,
            BLOCK=min(next_power_of_2(width), 2048),
            num_warps=4,
        )
        return out


class TokenProjection:
    """Frozen 4-bit linear layers with a common input as one product; raises NotFusable for other layers."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        self.layers = tuple(layers)
        if not all(is_quantized(layer) for layer in layers):
            raise NotFusable("a layer is not in 4 bits")
        states: list[Any] = [layer.weight.quant_state for layer in layers]
        kinds = {(s.nested, s.blocksize, s.state2.blocksize if s.nested else 0, s.quant_type) for s in states}
        self.num_in = int(states[0].shape[1])
        if len(kinds) > 1 or self.num_in % states[0].blocksize or len({layer.bias is None for layer in layers}) > 1:
            raise NotFusable("layers that share an input are quantized in different ways")
        self.sizes = [int(state.shape[0]) for state in states]
        self._table = tuple(states[0].code.tolist())
        self.num_out = sum(self.sizes)

    def __call__(
        self,
        x: torch.Tensor,
        lora: TokenLora | None = None,
        factors_M: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (M, K) through the layers side by side, (M, sum of out), with the adapter's part and the residual added."""
        out = x.new_empty(x.shape[0], self.num_out)
        inner = x if lora is None else lora.inner(x, factors_M)
        # weights are read anew each time: moving a model makes new ones
        weights: list[Any] = [layer.weight for layer in self.layers]
        states = [weight.quant_state for weight in weights]
        nested, bias = states[0].nested, self.layers[0].bias is not None
        features, blocks, warps = self._tile(x.device, states[0].blocksize)
        num_blocks = [cdiv(size, features) for size in self.sizes]
        triton_token.token_product[(sum(num_blocks),)](
            x,
            out,
            x if residual is None else residual,
            inner,
            *_three([packed_bytes(weight) for weight in weights]),
            *_three([state.absmax for state in states]),
            *_three([state.state2.absmax if nested else state.absmax for state in states]),
            *_three([state.offset if nested else state.absmax for state in states]),
            *_three([layer.bias if bias else x for layer in self.layers]),
            *_three([x] if lora is None else lora.b),
            *_three([1.0] if lora is None else lora.scales),
            states[0].code,
            states[0].state2.code if nested else states[0].code,
            *_three(self.sizes),
            *_three(num_blocks)[:2],
            self.num_in,
            self.num_out,
            M=x.shape[0],
            J=len(self.layers),
            RANK=16 if lora is None else lora.a[0].shape[0],
            R=16 if lora is None else inner.shape[2],
            LORA=lora is not None,
            BIAS=bias,
            RESIDUAL=residual is not None,
            NESTED=nested,
            BLOCKSIZE=states[0].blocksize,
            OUTER=states[0].state2.blocksize if nested else 256,
            PAIRED=x.dtype.itemsize == 2,
            LOOKUP=byte_lookup.lookup_assembly(self._table) if self._permutes(x) else "",
            CONSTRAINTS=byte_lookup.CONSTRAINTS,
            BN=features,
            BB=blocks,
            num_warps=warps,
        )
        return out

    def _permutes(self, x: torch.Tensor) -> bool:
        """Whether codes become values by NVIDIA's byte permutation: in 16-bit arithmetic, whose rounding hides what that rounds."""
        return x.is_cuda and x.dtype.itemsize == 2 and torch.version.cuda is not None

    def _tile(self, device: torch.device, blocksize: int) -> tuple[int, int, int]:
        """Features of a program, blocks that it reads of each at a time, and its warps: the fewer features, the more warps share one."""
        enough = CARD_WARPS * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)
        warps = next((count for count in (1, 2) if self.num_out * count >= FEATURES * enough), 4)
        return FEATURES, min(next_power_of_2(self.num_in // blocksize), WARP_BLOCKS * warps), warps


@dataclass(frozen=True)
class TokenAttention:
    """How q attends to a cache: `scale` on the scores, `window` slots back (None: all), tanh at `softcap` (None: none)."""

    heads: Heads
    scale: float
    window: int | None
    softcap: float | None

    def __call__(  # noqa: PLR0917
        self,
        rotated: torch.Tensor,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows_M: torch.Tensor,
        positions_M: torch.Tensor,
    ) -> torch.Tensor:
        """Write k and v into the cache (rows, heads, L, D) and attend, (M, heads * D). q and k are `rotated`'s columns, v is qkv's."""
        num, heads = qkv.shape[0], self.heads
        block = max(16, next_power_of_2(heads.dim))
        places = (keys.stride(0), keys.stride(1), keys.stride(2))
        triton_token.token_store[(num, heads.num_k)](
            rotated,
            qkv,
            keys,
            values,
            rows_M,
            positions_M,
            rotated.stride(0),
            qkv.stride(0),
            heads.num_q * heads.dim,
            heads.num_rotated,
            *places,
            D=heads.dim,
            BLOCK=block,
            num_warps=1,
        )
        parts = min(next_power_of_2(cdiv(keys.shape[2], SLOTS)), MAX_PARTS)
        mixed, highest, sums = (
            torch.empty(num, heads.num_q, parts, *more, dtype=torch.float32, device=qkv.device) for more in ((heads.dim,), (), ())
        )
        triton_token.token_attend[(num * heads.num_k, parts)](
            rotated,
            keys,
            values,
            rows_M,
            positions_M,
            mixed,
            highest,
            sums,
            self.scale,
            self.softcap or 1.0,
            self.window or 0,
            rotated.stride(0),
            *places,
            KV=heads.num_k,
            GROUP=heads.num_q // heads.num_k,
            D=heads.dim,
            BLOCK=block,
            S=parts,
            SLOTS=SLOTS if block <= 128 else SLOTS // 2,
            WINDOW=self.window is not None,
            SOFTCAP=self.softcap is not None,
            num_warps=4,
        )
        out = qkv.new_empty(num, heads.num_q * heads.dim)
        triton_token.token_gather[(num * heads.num_q,)](mixed, highest, sums, out, D=heads.dim, BLOCK=block, S=parts, num_warps=4)
        return out


def _three(values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, the last one repeated: the kernels take three of each."""
    return (*values, *[values[-1]] * (3 - len(values)))
