"""Arithmetic that several Triton kernels share."""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra import libdevice

# CUDA's own functions, which torch's kernels call; Triton's are faster and less exact. Its interpreter, on a processor, has only those.
exact_exp = tl.exp if triton.knobs.runtime.interpret else libdevice.exp
exact_log = tl.log if triton.knobs.runtime.interpret else libdevice.log


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


exact_tanh = tanh if triton.knobs.runtime.interpret else libdevice.tanh


@triton.jit
def rounded(value, like):
    """`value` (fp32) as it would be read again if it had been stored where `like` points."""
    return value.to(like.dtype.element_ty).to(tl.float32)
