"""The Triton kernel that makes 16-bit weights of 4-bit ones."""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl


@triton.jit
def nf4_dequantize(
    packed,
    absmax,
    code,
    absmax2,
    code2,
    offset,
    out,
    num_bytes,
    row_bytes,
    source_row_bytes,
    first_byte,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    BLOCKSIZE2: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = the codes of each byte's high and low nibble, times its block's absmax (itself 8-bit where NESTED).

    Where PART, `out` holds row_bytes of every source row of source_row_bytes, from first_byte on: a range of the matrix's columns.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = index < num_bytes
    source = index
    if PART:
        source = (index // row_bytes) * source_row_bytes + first_byte + index % row_bytes
    byte = tl.load(packed + source, mask=valid, other=0).to(tl.int32)
    block = (source * 2) // BLOCKSIZE
    if NESTED:
        quantized = tl.load(absmax + block, mask=valid, other=0).to(tl.int32)
        scale = tl.load(code2 + quantized) * tl.load(absmax2 + block // BLOCKSIZE2, mask=valid, other=0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=valid, other=0.0)
    high = tl.load(code + (byte >> 4)) * scale
    low = tl.load(code + (byte & 15)) * scale
    pair = tl.reshape(tl.join(high, low), (2 * BLOCK,))
    target = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    tl.store(out + target, pair.to(out.dtype.element_ty), mask=target < num_bytes.to(tl.int64) * 2)
