"""Causal attention inside the documents of a packed row, on plain torch: no flash-attn, no kernel downloads, no mask of N x N.

On CUDA it is torch's own variable-length flash kernel; elsewhere, and for soft-capped scores, a reference per document or row. `register`
offers the same through transformers' `AttentionInterface`, so that the plain path can train on the same packed batches.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

NAME = "qlora_varlen"


@dataclass(frozen=True)
class VarlenPlan:
    """Which tokens see which: `cumulative` int32 (documents + 1) marks where documents begin; its tail may repeat the total."""

    cumulative: torch.Tensor
    max_length: int
    scale: float
    window: int | None = None  # how many tokens back a token sees, itself included; None: all
    softcap: float | None = None
    is_exact: bool = False
    """Rows of one document are computed by the kernel that transformers' SDPA takes, though another one may be faster."""


# From this length on cuDNN's kernels beat the flash kernel on rows of one document: 8B, 2 x 2,048 tokens, H100: 0.14 against 0.28 ms
# forward, 0.51 against 0.82 backward. At 4 x 512 its backward pass is the slower one.
CUDNN_FROM = 1024
SDPA_CUDNN = ((9, 0), (10, 0))
"""Compute capabilities on which torch's own choice is cuDNN (`check_prefer_cudnn_attention`, sdp_utils.cpp)."""


def is_dense(tokens: int, plan: VarlenPlan) -> bool:
    """Return whether every row is one document of full length: so many documents of at most `max_length` tokens leave no other way."""
    return bool((plan.cumulative.shape[0] - 1) * plan.max_length == tokens)


def supports_flash(q: torch.Tensor, plan: VarlenPlan) -> bool:
    """Return whether torch's variable-length kernel computes this: on Ampere and later."""
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) < (8, 0):
        return False
    return has_kernel(q, plan)


def has_kernel(q: torch.Tensor, plan: VarlenPlan) -> bool:
    """Return whether the kernel could compute this on a card that has it."""
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    return bool(plan.softcap is None and fits)


def prefers_cudnn(q: torch.Tensor, plan: VarlenPlan) -> bool:
    """Return whether cuDNN's dense kernel is used: rows of one document, on Hopper or later, heads of up to 128."""
    if not (supports_flash(q, plan) and plan.window is None and is_dense(q.shape[0], plan) and q.shape[-1] <= 128):
        return False
    capability = torch.cuda.get_device_capability(q.device)
    # SDPA takes cuDNN first on data center cards only: on an RTX 50 (12.0) it takes the flash kernel
    is_wanted = capability in SDPA_CUDNN if plan.is_exact else capability[0] >= 9 and plan.max_length >= CUDNN_FROM
    return bool(is_wanted and torch.backends.cuda.cudnn_sdp_enabled())


def _window(plan: VarlenPlan) -> dict[str, int]:
    return {} if plan.window is None else {"window_size_left": plan.window - 1, "window_size_right": 0}


def _rows(x: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    """(N, heads, dim) as (rows, heads, length, dim), a view."""
    return x.unflatten(0, (-1, plan.max_length)).transpose(1, 2)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(rows, heads, length, dim) as (N, heads, dim)."""
    return x.transpose(1, 2).flatten(0, 1)


def varlen_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (output (N, heads, dim), log-sum-exp); k and v may have fewer heads than q, which share them in groups."""
    if not supports_flash(q, plan):
        return _reference(q, k, v, plan), q.new_empty(0)
    if prefers_cudnn(q, plan):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            _rows(q, plan), _rows(k, plan), _rows(v, plan), None, True, 0.0, True, False, scale=plan.scale
        )
        return _tokens(out), lse
    # the op itself takes grouped heads; torch.nn.attention.varlen of 2.11 has no argument for them
    longest, documents = plan.max_length, plan.cumulative
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, documents, documents, longest, longest, 0.0, True, False, scale=plan.scale, **_window(plan)
    )
    return out, lse


def varlen_backward(  # noqa: PLR0917
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, plan: VarlenPlan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v."""
    if not supports_flash(q, plan):
        return _reference_backward(grad, q, k, v, plan)
    longest, documents = plan.max_length, plan.cumulative
    # with dropout 0 the random state is not read; any values of the right type do
    if prefers_cudnn(q, plan):
        seed = torch.empty((), dtype=torch.int64, device=q.device)
        rows = [_rows(t, plan) for t in (grad, q, k, v, out)]
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *rows, lse, seed, seed, None, None, None, longest, longest, 0.0, True, scale=plan.scale
        )
        dq, dk, dv = (_tokens(t) for t in grads)
        return dq, dk, dv
    state = torch.empty(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, device=q.device)
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, documents, documents, longest, longest, 0.0, True, state, unused, scale=plan.scale, **_window(plan)
    )
    return dq, dk, dv


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    """Rows of `max_length` tokens, each with a mask of its documents: documents never cross rows in our batches, or there is one row."""
    document = _documents(q, plan)
    return torch.cat([_reference_row(q[span], k[span], v[span], document[span], plan) for span in _spans(q, plan)])


def _reference_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row after row, so that the scores of one row are all that exists of the square."""
    document = _documents(q, plan)
    parts = []
    for span in _spans(q, plan):
        with torch.enable_grad():
            inputs = [t[span].detach().requires_grad_() for t in (q, k, v)]
            again = _reference_row(inputs[0], inputs[1], inputs[2], document[span], plan)
        parts.append(torch.autograd.grad(again, inputs, grad[span]))
        del again, inputs
    dq, dk, dv = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return dq, dk, dv


def _spans(q: torch.Tensor, plan: VarlenPlan) -> list[slice]:
    length = plan.max_length if q.shape[0] % plan.max_length == 0 else q.shape[0]
    return [slice(start, start + length) for start in range(0, q.shape[0], length)]


def _documents(q: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    """The number of the document that each token belongs to."""
    index = torch.arange(q.shape[0], device=q.device)
    return torch.searchsorted(plan.cumulative[1:].to(index.dtype), index, right=True)


def _reference_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, document: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    place = torch.arange(q.shape[0], device=q.device)
    seen = (document[:, None] == document[None, :]) & (place[:, None] >= place[None, :])
    if plan.window is not None:
        seen &= place[:, None] - place[None, :] < plan.window
    keys, values = (t.repeat_interleave(groups, 1).transpose(0, 1) for t in (k, v))
    scores = (q.transpose(0, 1) @ keys.transpose(1, 2)) * plan.scale
    if plan.softcap is not None:
        scores = torch.tanh(scores / plan.softcap) * plan.softcap
    weights = scores.float().masked_fill(~seen, float("-inf")).softmax(-1).to(q.dtype)
    return (weights @ values).transpose(0, 1)


def _masked_rows(  # noqa: PLR0917
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal rows (B, heads, T, dim) that no kernel of torch computes: capped scores, or a window. The last query sees the last key."""
    groups, length = query.shape[1] // key.shape[1], key.shape[2]
    place = torch.arange(length, device=query.device)
    own = place[length - query.shape[2] :, None]
    seen = place[None, :] <= own
    if window is not None:
        seen &= own - place[None, :] < window
    scores = (query @ key.repeat_interleave(groups, 1).transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float().masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).to(query.dtype)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous()


class _Varlen(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: VarlenPlan) -> torch.Tensor:
        out, lse = varlen_forward(q, k, v, plan)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return (*varlen_backward(grads[0].contiguous(), q, k, v, out, lse, ctx.plan), None)


def varlen_attention(  # noqa: PLR0917
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for query (B, heads, T, dim): separate documents with `cu_seq_lens_q` (B is 1), else causal rows."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if cu_seq_lens_q is None or max_length_q is None:
        if softcap is not None or (sliding_window is not None and key.shape[2] > sliding_window):
            return _masked_rows(query, key, value, attention_mask, scale, sliding_window, softcap), None
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[2] > 1,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).contiguous(), None
    plan = VarlenPlan(cu_seq_lens_q, max_length_q, scale, sliding_window, softcap, is_exact=True)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    result: torch.Tensor = _Varlen.apply(q, k, v, plan)
    return result[None], None


def register() -> str:
    """Offer the packed attention to transformers and return its name, for `attn_implementation`."""
    from transformers import AttentionInterface

    # no mask function of that name exists, so masking_utils builds no mask at all
    AttentionInterface.register(NAME, varlen_attention)
    return NAME
