"""The random bits of dropout inside Triton kernels.

Dropout is a function of (seed tensor, projection, token, column), so that forward, recomputation and backward see one mask and nothing
is stored. One 32-bit hash serves two columns that lie 64 apart (16 bits each), which halves its cost; `dropout.py` has it in torch.
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"
# ruff: noqa: PLR0917  (a kernel takes pointers, sizes and strides one by one)

import triton
import triton.language as tl


@triton.jit
def finalize(h):
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    h ^= h >> 16
    return h


@triton.jit
def dropped_key0(seed, salt):
    return finalize(tl.load(seed).to(tl.uint32) ^ (salt.to(tl.uint32) * 0x9E3779B9))


@triton.jit
def dropped_key1(seed, salt):
    return finalize(tl.load(seed + 1).to(tl.uint32) + (salt.to(tl.uint32) * 0x85EBCA6B))


@triton.jit
def pair_hash(rows, half_cols, half_width, key0, key1):
    """32 random bits for each (row, pair of columns); `half_cols` counts pairs."""
    h = (rows * half_width + half_cols).to(tl.uint32) ^ key0
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= key1
    h ^= h >> 15
    h *= 0x846CA68B
    h ^= h >> 16
    return h


@triton.jit
def keep(rows, cols, half_width, key0, key1, threshold):
    h = pair_hash(rows, (cols // 128) * 64 + cols % 64, half_width, key0, key1)
    bits = (h >> (((cols // 64) % 2) * 16).to(tl.uint32)) & 0xFFFF
    return bits >= threshold.to(tl.uint32)
