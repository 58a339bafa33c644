"""Arithmetic that several Triton kernels share."""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _log(x):
    return tl.log(x)


@triton.jit
def _ratio(a, b):
    return a / b


# CUDA's own functions, which torch's kernels call; Triton's are faster and less exact. Its interpreter, on a processor, has only those.
INTERPRETED = triton.knobs.runtime.interpret
exact_exp = _exp if INTERPRETED else libdevice.exp
exact_log = _log if INTERPRETED else libdevice.log
exact_tanh = tanh if INTERPRETED else libdevice.tanh
exact_ratio = _ratio if INTERPRETED else tl.div_rn


@triton.jit
def rounded(value, like):
    """`value` (fp32) as it would be read again if it had been stored where `like` points."""
    return value.to(like.dtype.element_ty).to(tl.float32)
