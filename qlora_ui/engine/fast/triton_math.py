"""Arithmetic that several Triton kernels share."""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def rounded(value, like):
    """`value` (fp32) as it would be read again if it had been stored where `like` points."""
    return value.to(like.dtype.element_ty).to(tl.float32)
