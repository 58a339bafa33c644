"""The fast step's operations: a Triton kernel on CUDA where Triton is installed, plain torch elsewhere (CPU, Windows), same results.

Shapes: N tokens, H model width, F MLP width, J adapted projections that share an input, R LoRA rank padded to a multiple of 16.
Everything is safe inside a CUDA graph capture: no host synchronisation, no data-dependent shape.
"""

import functools
import importlib.util
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .dropout import Dropout, half_width, keep_mask

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    import triton

    from . import triton_layers, triton_lora

# what a step that the card or its compiler cannot run raises
KERNEL_ERRORS: tuple[type[Exception], ...] = (RuntimeError, triton.TritonError) if HAS_TRITON else (RuntimeError,)
MAX_GROUP = 3  # q, k and v; the kernels take that many pointers
BACK_LAUNCH = {"BM": 16, "num_warps": 4, "num_stages": 4}


@dataclass(frozen=True)
class Adapter:
    """One projection's LoRA: a (rank, in), b (out, rank), the factor alpha / r, its dropout salt and first column in the output."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    salt: int
    column: int

    @property
    def num_out(self) -> int:
        """Columns of the output this projection writes."""
        return int(self.b.shape[0])


def cdiv(count: int, block: int) -> int:
    """How many blocks hold `count`, the last one partly filled."""
    return -(-count // block)


def next_power_of_2(count: int) -> int:
    """The smallest power of two that is not below `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()


def uses_triton(x: torch.Tensor) -> bool:
    """Return whether operations on this tensor run as Triton kernels."""
    if not HAS_TRITON:
        return False
    return triton_failure(x.device) == "" if x.is_cuda else bool(triton.knobs.runtime.interpret)


@functools.cache
def triton_failure(device: torch.device) -> str:
    """Return why Triton cannot build or run a kernel on this device, or an empty string; asked once, by running a small one.

    Triton builds its launchers with the machine's C compiler, which many machines lack.
    """
    if not HAS_TRITON:
        return "Triton is not installed"
    table = torch.arange(8, dtype=torch.float32, device=device).view(4, 2)
    out = torch.zeros_like(table[:1])
    try:
        triton_layers.gather_rows[(1,)](torch.full((1,), 3, device=device), table, out, 2, BLOCK=16, num_warps=1)
        works = out.tolist() == [[6.0, 7.0]]
    except (RuntimeError, OSError, ImportError, subprocess.CalledProcessError, triton.TritonError) as failure:
        return str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    return "" if works else "a small kernel gave a wrong result"


def padded_rank(adapters: Sequence[Adapter]) -> int:
    """Return the group's rank rounded up to a power of two of at least 16: the tensor cores' smallest tile."""
    rank = adapters[0].a.shape[0]
    return max(16, 1 << (int(rank) - 1).bit_length())


def _three(values: Sequence[Any]) -> list[Any]:
    return [*values, *([values[-1]] * (MAX_GROUP - len(values)))]


def _masked(x: torch.Tensor, adapter: Adapter, dropout: Dropout | None) -> torch.Tensor:
    if dropout is None:
        return x
    return torch.where(keep_mask(dropout, adapter.salt, *x.shape), x, 0)


def _down_launch(num_rows: int, padded: int) -> dict[str, int]:
    # measured on an H100 at 2,048 and 4,096 rows, rank 16: 16 rows a program fill its 132 multiprocessors. Larger ranks take fewer
    # stages, so that their tiles fit the 99 KiB of shared memory of consumer cards.
    stages = 5 if padded <= 32 else 3 if padded <= 64 else 2
    return {"BM": 16, "num_warps": 4 if num_rows <= 2048 or padded > 32 else 2, "num_stages": stages}


def _outer_launch(total_width: int, has_dropout: bool, padded: int) -> dict[str, int]:
    # narrow columns where there are few, for enough programs; wide ones where reading decides
    if total_width >= 64 * 132 and not has_dropout:
        return {"BN": 64, "BC": 64, "num_warps": 4, "num_stages": 3 if padded <= 64 else 2}
    return {"BN": 128, "BC": 16, "num_warps": 4, "num_stages": 4 if padded <= 64 else 2}


def _back_launch(total_width: int, padded: int) -> dict[str, int]:
    # both halves of the launch share warps and stages; wide columns where reading them decides
    wide = {"BN": 64, "BC": 64} if total_width >= 64 * 132 else {"BN": 128, "BC": 16}
    large = {} if padded <= 32 else {"num_stages": 3} if padded <= 64 else {"num_stages": 2}
    return {**wide, **BACK_LAUNCH, **large}


def project_down(x: torch.Tensor, adapters: Sequence[Adapter], dropout: Dropout | None) -> torch.Tensor:
    """Return dropout_j(x) @ a_j.T for each adapter as (N, J, R); x is (N, in). Each projection has a mask of its own, as in PEFT."""
    rank, padded = adapters[0].a.shape[0], padded_rank(adapters)
    gain = dropout.inverse_keep if dropout else 1.0
    if not uses_triton(x):
        parts = [F.pad(_masked(x, ad, dropout) @ ad.a.t() * gain, (0, padded - rank)) for ad in adapters]
        return torch.stack(parts, 1)
    out = x.new_empty(x.shape[0], len(adapters), padded)
    launch = _down_launch(x.shape[0], padded)
    triton_lora.lora_down[(cdiv(x.shape[0], launch["BM"]), len(adapters))](
        x,
        out,
        dropout.seed if dropout else x,
        *_three([ad.a for ad in adapters]),
        gain,
        *_three([ad.salt for ad in adapters]),
        x.shape[0],
        x.shape[1],
        x.stride(0),
        half_width(x.shape[1]),
        dropout.first_row if dropout else 0,
        dropout.threshold if dropout else 0,
        RANK=rank,
        R=padded,
        J=len(adapters),
        DROP=dropout is not None,
        **launch,
    )
    return out


def project_back(grad: torch.Tensor, inner: torch.Tensor, adapters: Sequence[Adapter], grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return scale_j * grad[:, columns of j] @ b_j as (N, J, R), the gradient that reaches each adapter's inner product.

    In the same pass over grad, scale_j * grad[:, columns of j].T @ inner[:, j] is added to grads[j] (out, rank): b_j's gradient.
    """
    rank, padded = adapters[0].a.shape[0], padded_rank(adapters)
    if not uses_triton(grad):
        parts = []
        for j, ad in enumerate(adapters):
            own = grad[:, ad.column : ad.column + ad.num_out]
            grads[j].add_(own.t() @ inner[:, j, :rank] * ad.scale)
            parts.append(F.pad(own @ ad.b * ad.scale, (0, padded - rank)))
        return torch.stack(parts, 1)
    out = grad.new_empty(grad.shape[0], len(adapters), padded)
    launch = _back_launch(sum(ad.num_out for ad in adapters), padded)
    row_blocks = cdiv(grad.shape[0], launch["BM"])
    column_blocks = cdiv(max(ad.num_out for ad in adapters), launch["BC"])
    triton_lora.lora_back[(row_blocks + column_blocks, len(adapters))](
        grad,
        inner,
        out,
        *_three([ad.b for ad in adapters]),
        *_three(grads),
        *_three([ad.column for ad in adapters]),
        *_three([ad.num_out for ad in adapters]),
        *_three([ad.scale for ad in adapters]),
        grad.shape[0],
        grad.stride(0),
        row_blocks,
        RANK=rank,
        R=padded,
        J=len(adapters),
        **launch,
    )
    return out


def add_up_(y: torch.Tensor, inner: torch.Tensor, adapters: Sequence[Adapter], residual: torch.Tensor | None = None) -> torch.Tensor:
    """Add scale_j * inner[:, j] @ b_j.T to y's columns of j, in place, and `residual` to all of y (one adapter only)."""
    rank = adapters[0].a.shape[0]
    if not uses_triton(y):
        for j, ad in enumerate(adapters):
            y[:, ad.column : ad.column + ad.num_out] += inner[:, j, :rank] @ ad.b.t() * ad.scale
        return y if residual is None else y.add_(residual)
    rows, columns = (32, 128) if rank <= 64 else (32, 64)
    blocks = [cdiv(ad.num_out, columns) for ad in adapters]
    triton_lora.lora_up[(cdiv(y.shape[0], rows), sum(blocks))](
        y,
        inner,
        y if residual is None else residual,
        *_three([ad.b for ad in adapters]),
        *_three([ad.column for ad in adapters]),
        *_three([ad.num_out for ad in adapters]),
        *_three([ad.scale for ad in adapters]),
        y.shape[0],
        y.stride(0),
        *_three(blocks)[:2],
        RANK=rank,
        R=inner.shape[2],
        J=len(adapters),
        RESIDUAL=residual is not None,
        BM=rows,
        BN=columns,
        num_warps=4,
    )
    return y


def add_input_gradients_(
    products: Sequence[torch.Tensor | None],
    places: Sequence[int],
    inner_grad: torch.Tensor | None,
    adapters: Sequence[Adapter],
    dropout: Dropout | None,
) -> torch.Tensor:
    """Return the gradient of an input (N, in) that some layers share, in place of `products[0]`.

    From the last layer to the first, mask * (inner_grad[:, place] @ a) of its adapter `places[l]` (-1: it has none) and then `products[l]`
    (None: another one has it) are added, and rounded each time: the order in which autograd adds them up.
    """
    dx = products[0]
    if dx is None:
        raise ValueError("The first layer's product is what the sum is written to.")
    if inner_grad is None and not any(product is not None for product in products[1:]):
        return dx
    rank = adapters[0].a.shape[0] if adapters else 16
    gain = dropout.inverse_keep if dropout else 1.0
    if not uses_triton(dx):
        parts = []
        for product, place in zip(reversed(products), reversed(places), strict=True):
            if place >= 0 and inner_grad is not None:
                adapter = adapters[place]
                parts.append(_masked(inner_grad[:, place, :rank] @ adapter.a * gain, adapter, dropout))
            parts += [] if product is None else [product]
        return dx.copy_(functools.reduce(torch.add, parts))
    owners = [adapters[place] if place >= 0 else None for place in places]
    triton_lora.lora_dx[(cdiv(dx.shape[0], 32), cdiv(dx.shape[1], 128))](
        *_three([dx if product is None else product for product in products]),
        dx if inner_grad is None else inner_grad,
        dropout.seed if dropout else dx,
        *_three([dx if owner is None else owner.a for owner in owners]),
        *_three([0 if owner is None else owner.salt for owner in owners]),
        dx.shape[0],
        dx.shape[1],
        half_width(dx.shape[1]),
        dropout.first_row if dropout else 0,
        dropout.threshold if dropout else 0,
        gain,
        **dict(zip(("PLACE0", "PLACE1", "PLACE2"), _three(places), strict=True)),
        APART=len(products) > 1 and products[1] is not None,
        RANK=rank,
        R=16 if inner_grad is None else inner_grad.shape[2],
        J=len(adapters),
        LAYERS=len(products),
        DROP=dropout is not None,
        BM=32,
        num_warps=4,
    )
    return dx


def add_input_gradient_(dx: torch.Tensor, inner_grad: torch.Tensor, adapter: Adapter, dropout: Dropout | None) -> torch.Tensor:
    """Add mask * (inner_grad[:, 0] @ a) to dx (N, in), in place."""
    return add_input_gradients_([dx], [0], inner_grad, [adapter], dropout)


def accumulate_a(
    inner_grad: torch.Tensor, x: torch.Tensor, adapters: Sequence[Adapter], grads: Sequence[torch.Tensor], dropout: Dropout | None
) -> None:
    """Add inner_grad[:, j].T @ dropout_j(x) to grads[j] (rank, in), in place."""
    rank = adapters[0].a.shape[0]
    gain = dropout.inverse_keep if dropout else 1.0
    if not uses_triton(x):
        for j, ad in enumerate(adapters):
            grads[j].add_(inner_grad[:, j, :rank].t() @ _masked(x, ad, dropout) * gain)
        return
    launch = _outer_launch(len(adapters) * x.shape[1], dropout is not None, inner_grad.shape[2])
    triton_lora.lora_outer[(cdiv(x.shape[1], launch["BC"]), len(adapters))](
        inner_grad,
        x,
        dropout.seed if dropout else x,
        *_three(grads),
        gain,
        *_three([ad.salt for ad in adapters]),
        x.shape[0],
        x.shape[1],
        x.stride(0),
        half_width(x.shape[1]),
        dropout.first_row if dropout else 0,
        dropout.threshold if dropout else 0,
        RANK=rank,
        R=inner_grad.shape[2],
        J=len(adapters),
        DROP=dropout is not None,
        **launch,
    )
