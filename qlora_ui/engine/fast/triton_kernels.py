"""Triton kernels of the fast training step: 4-bit weights, LoRA's small products, dropout, norms, rotary, gated MLP, loss.

Imported only where Triton is installed (Linux with CUDA); `ops.py` chooses between these and plain torch. Shapes: N tokens, H model
width, F MLP width, R rank padded to a multiple of 16, J projections that share one input, V vocabulary. All sums run in fp32.

Dropout is a function of (seed tensor, projection, token, column), so that forward, recomputation and backward see one mask and nothing is
stored. One 32-bit hash serves two columns that lie 64 apart (16 bits each), which halves its cost; `dropout.py` has the same in torch.
"""
# mypy: disable-error-code="no-untyped-def,misc,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _finalize(h):
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    h ^= h >> 16
    return h


@triton.jit
def _key0(seed, salt):
    return _finalize(tl.load(seed).to(tl.uint32) ^ (salt.to(tl.uint32) * 0x9E3779B9))


@triton.jit
def _key1(seed, salt):
    return _finalize(tl.load(seed + 1).to(tl.uint32) + (salt.to(tl.uint32) * 0x85EBCA6B))


@triton.jit
def _pair_hash(rows, half_cols, half_width, key0, key1):
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
def _keep(rows, cols, half_width, key0, key1, threshold):
    h = _pair_hash(rows, (cols // 128) * 64 + cols % 64, half_width, key0, key1)
    bits = (h >> (((cols // 64) % 2) * 16).to(tl.uint32)) & 0xFFFF
    return bits >= threshold.to(tl.uint32)


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


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "threshold"])
def lora_down(
    x,
    out,
    seed,
    w0,
    w1,
    w2,
    col0,
    col1,
    col2,
    num0,
    num1,
    num2,
    scale0,
    scale1,
    scale2,
    salt0,
    salt1,
    salt2,
    n_rows,
    x_stride,
    w_stride_r,
    w_stride_c,
    half_width,
    threshold,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    DROP: tl.constexpr,
    BM: tl.constexpr,
):
    """out[n, j, :] = scale_j * sum_c dropout_j(x[n, col_j + c]) * w_j[:, c]; out is (N, J, R)."""
    j = tl.program_id(1)
    w, col, num, scale, salt = w0, col0, num0, scale0, salt0
    if j == 1:
        w, col, num, scale, salt = w1, col1, num1, scale1, salt1
    if j == 2:
        w, col, num, scale, salt = w2, col2, num2, scale2, salt2
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    rank = tl.arange(0, R)
    lane = tl.arange(0, 64)
    row_ok = rows[:, None] < n_rows
    x_row = x + rows[:, None].to(tl.int64) * x_stride + col
    acc = tl.zeros((BM, R), dtype=tl.float32)
    if DROP:
        key0 = _key0(seed, salt)
        key1 = _key1(seed, salt)
    for start in range(0, num, 128):
        first = start + lane
        second = first + 64
        xa = tl.load(x_row + first[None, :], mask=row_ok & (first[None, :] < num), other=0.0)
        xb = tl.load(x_row + second[None, :], mask=row_ok & (second[None, :] < num), other=0.0)
        if DROP:
            h = _pair_hash(rows[:, None], (start // 2 + lane)[None, :], half_width, key0, key1)
            xa = tl.where((h & 0xFFFF) >= threshold.to(tl.uint32), xa, 0.0).to(xa.dtype)
            xb = tl.where((h >> 16) >= threshold.to(tl.uint32), xb, 0.0).to(xb.dtype)
        wa = tl.load(
            w + first[:, None] * w_stride_c + rank[None, :] * w_stride_r, mask=(first[:, None] < num) & (rank[None, :] < RANK), other=0.0
        )
        wb = tl.load(
            w + second[:, None] * w_stride_c + rank[None, :] * w_stride_r, mask=(second[:, None] < num) & (rank[None, :] < RANK), other=0.0
        )
        acc = tl.dot(xa, wa, acc, input_precision="ieee")
        acc = tl.dot(xb, wb, acc, input_precision="ieee")
    target = out + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :]
    tl.store(target, (acc * scale).to(out.dtype.element_ty), mask=row_ok)


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "threshold"])
def lora_outer(
    left,
    x,
    seed,
    g0,
    g1,
    g2,
    col0,
    col1,
    col2,
    num0,
    num1,
    num2,
    scale0,
    scale1,
    scale2,
    salt0,
    salt1,
    salt2,
    n_rows,
    x_stride,
    half_width,
    threshold,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    RANK_MAJOR: tl.constexpr,
    DROP: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """g_j += scale_j * left[:, j, :].T @ dropout_j(x[:, col_j:col_j + num_j]); g_j is (RANK, num_j), or its transpose."""
    j = tl.program_id(1)
    g, col, num, scale, salt = g0, col0, num0, scale0, salt0
    if j == 1:
        g, col, num, scale, salt = g1, col1, num1, scale1, salt1
    if j == 2:
        g, col, num, scale, salt = g2, col2, num2, scale2, salt2
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    if tl.program_id(0) * BC < num:
        rank = tl.arange(0, R)
        col_ok = cols[None, :] < num
        acc = tl.zeros((R, BC), dtype=tl.float32)
        if DROP:
            key0 = _key0(seed, salt)
            key1 = _key1(seed, salt)
        for start in range(0, n_rows, BN):
            rows = start + tl.arange(0, BN)
            row_ok = rows[:, None] < n_rows
            tile = tl.load(x + rows[:, None].to(tl.int64) * x_stride + col + cols[None, :], mask=row_ok & col_ok, other=0.0)
            if DROP:
                keep = _keep(rows[:, None], cols[None, :], half_width, key0, key1, threshold)
                tile = tl.where(keep, tile, 0.0).to(tile.dtype)
            lt = tl.load(left + rows[None, :].to(tl.int64) * (J * R) + j * R + rank[:, None], mask=rows[None, :] < n_rows, other=0.0)
            acc = tl.dot(lt, tile, acc, input_precision="ieee")
        if RANK_MAJOR:
            target = g + rank[:, None] * num + cols[None, :]
        else:
            target = g + cols[None, :] * RANK + rank[:, None]
        ok = (rank[:, None] < RANK) & col_ok
        old = tl.load(target, mask=ok, other=0.0).to(tl.float32)
        tl.store(target, (old + acc * scale).to(g.dtype.element_ty), mask=ok)


@triton.jit
def lora_up(
    y,
    xa,
    residual,
    b0,
    b1,
    b2,
    col0,
    col1,
    col2,
    num0,
    num1,
    num2,
    scale0,
    scale1,
    scale2,
    n_rows,
    y_stride,
    blocks0,
    blocks1,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """y[:, col_j:col_j + num_j] += scale_j * xa[:, j] @ b_j.T (+ residual), in place; b_j is (num_j, RANK)."""
    block = tl.program_id(1)
    b, col, num, scale, j = b0, col0, num0, scale0, 0
    if J > 1:
        if block >= blocks0:
            b, col, num, scale, j = b1, col1, num1, scale1, 1
            block -= blocks0
            if J > 2:
                if block >= blocks1:
                    b, col, num, scale, j = b2, col2, num2, scale2, 2
                    block -= blocks1
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = block * BN + tl.arange(0, BN)
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    ok = row_ok & (cols[None, :] < num)
    left = tl.load(xa + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :], mask=row_ok, other=0.0)
    right = tl.load(b + cols[None, :] * RANK + rank[:, None], mask=(cols[None, :] < num) & (rank[:, None] < RANK), other=0.0)
    place = rows[:, None].to(tl.int64) * y_stride + col + cols[None, :]
    total = tl.load(y + place, mask=ok, other=0.0).to(tl.float32) + scale * tl.dot(left, right, input_precision="ieee")
    if RESIDUAL:
        total += tl.load(residual + place, mask=ok, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["salt0", "salt1", "salt2", "threshold"])
def lora_dx(
    dx,
    gb,
    seed,
    a0,
    a1,
    a2,
    salt0,
    salt1,
    salt2,
    n_rows,
    width,
    half_width,
    threshold,
    inverse_keep,
    RANK: tl.constexpr,
    R: tl.constexpr,
    J: tl.constexpr,
    DROP: tl.constexpr,
    BM: tl.constexpr,
):
    """dx += sum_j dropout_mask_j * (gb[:, j] @ a_j), in place; a_j is (RANK, width)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lane = tl.arange(0, 64)
    first = tl.program_id(1) * 128 + lane
    second = first + 64
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    place = dx + rows[:, None].to(tl.int64) * width
    ok_a = row_ok & (first[None, :] < width)
    ok_b = row_ok & (second[None, :] < width)
    sum_a = tl.load(place + first[None, :], mask=ok_a, other=0.0).to(tl.float32)
    sum_b = tl.load(place + second[None, :], mask=ok_b, other=0.0).to(tl.float32)
    for j in tl.static_range(J):
        if j == 0:
            a, salt = a0, salt0
        elif j == 1:
            a, salt = a1, salt1
        else:
            a, salt = a2, salt2
        left = tl.load(gb + rows[:, None].to(tl.int64) * (J * R) + j * R + rank[None, :], mask=row_ok, other=0.0)
        right_a = tl.load(a + rank[:, None] * width + first[None, :], mask=(rank[:, None] < RANK) & (first[None, :] < width), other=0.0)
        right_b = tl.load(a + rank[:, None] * width + second[None, :], mask=(rank[:, None] < RANK) & (second[None, :] < width), other=0.0)
        part_a = tl.dot(left, right_a, input_precision="ieee")
        part_b = tl.dot(left, right_b, input_precision="ieee")
        if DROP:
            h = _pair_hash(rows[:, None], (tl.program_id(1) * 64 + lane)[None, :], half_width, _key0(seed, salt), _key1(seed, salt))
            part_a = tl.where((h & 0xFFFF) >= threshold.to(tl.uint32), part_a * inverse_keep, 0.0)
            part_b = tl.where((h >> 16) >= threshold.to(tl.uint32), part_b * inverse_keep, 0.0)
        sum_a += part_a
        sum_b += part_b
    tl.store(place + first[None, :], sum_a.to(dx.dtype.element_ty), mask=ok_a)
    tl.store(place + second[None, :], sum_b.to(dx.dtype.element_ty), mask=ok_b)


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _activate(g, GELU: tl.constexpr):
    if GELU:
        return 0.5 * g * (1.0 + _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)))
    else:
        return g * tl.sigmoid(g)


@triton.jit
def _activate_slope(g, GELU: tl.constexpr):
    if GELU:
        t = _tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))
        return 0.5 * (1.0 + t) + 0.5 * g * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * g * g)
    else:
        s = tl.sigmoid(g)
        return s * (1.0 + g * (1.0 - s))


@triton.jit
def gated_forward(
    gu,
    xa,
    out,
    b_gate,
    b_up,
    scale_gate,
    scale_up,
    n_rows,
    width,
    j_up,
    xa_stride,
    RANK: tl.constexpr,
    R: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_UP: tl.constexpr,
    KEEP: tl.constexpr,
    GELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """out = act(gate + its LoRA) * (up + its LoRA); gu is (N, 2F) and takes the corrected values where KEEP."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    col_ok = cols[None, :] < width
    place = gu + rows[:, None].to(tl.int64) * (2 * width) + cols[None, :]
    g = tl.load(place, mask=row_ok & col_ok, other=0.0).to(tl.float32)
    u = tl.load(place + width, mask=row_ok & col_ok, other=0.0).to(tl.float32)
    xa_row = xa + rows[:, None].to(tl.int64) * xa_stride + rank[None, :]
    b_ok = (rank[:, None] < RANK) & col_ok
    if HAS_GATE:
        left = tl.load(xa_row, mask=row_ok, other=0.0)
        g += scale_gate * tl.dot(left, tl.load(b_gate + cols[None, :] * RANK + rank[:, None], mask=b_ok, other=0.0), input_precision="ieee")
    if HAS_UP:
        left = tl.load(xa_row + j_up * R, mask=row_ok, other=0.0)
        u += scale_up * tl.dot(left, tl.load(b_up + cols[None, :] * RANK + rank[:, None], mask=b_ok, other=0.0), input_precision="ieee")
    g_stored = g.to(gu.dtype.element_ty)
    u_stored = u.to(gu.dtype.element_ty)
    if KEEP:
        tl.store(place, g_stored, mask=row_ok & col_ok)
        tl.store(place + width, u_stored, mask=row_ok & col_ok)
    # rounded first, so that the backward pass, which reads the stored values, differentiates what was computed
    value = _activate(g_stored.to(tl.float32), GELU) * u_stored.to(tl.float32)
    tl.store(out + rows[:, None].to(tl.int64) * width + cols[None, :], value.to(out.dtype.element_ty), mask=row_ok & col_ok)


@triton.jit(do_not_specialize=["salt", "threshold"])
def gated_backward(
    gu,
    dh,
    gb,
    seed,
    a_down,
    salt,
    n_rows,
    width,
    half_width,
    threshold,
    inverse_keep,
    RANK: tl.constexpr,
    R: tl.constexpr,
    HAS_DOWN: tl.constexpr,
    DROP: tl.constexpr,
    GELU: tl.constexpr,
    BM: tl.constexpr,
):
    """In place: gu (N, 2F) becomes its gradient, dh (N, F) becomes the recomputed act(gate) * up; LoRA's part of dh is added on the way."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lane = tl.arange(0, 64)
    rank = tl.arange(0, R)
    row_ok = rows[:, None] < n_rows
    if HAS_DOWN:
        left = tl.load(gb + rows[:, None].to(tl.int64) * R + rank[None, :], mask=row_ok, other=0.0)
        if DROP:
            h = _pair_hash(rows[:, None], (tl.program_id(1) * 64 + lane)[None, :], half_width, _key0(seed, salt), _key1(seed, salt))
    for half in tl.static_range(2):
        cols = tl.program_id(1) * 128 + half * 64 + lane
        ok = row_ok & (cols[None, :] < width)
        gu_place = gu + rows[:, None].to(tl.int64) * (2 * width) + cols[None, :]
        dh_place = dh + rows[:, None].to(tl.int64) * width + cols[None, :]
        d = tl.load(dh_place, mask=ok, other=0.0).to(tl.float32)
        if HAS_DOWN:
            a_ok = (rank[:, None] < RANK) & (cols[None, :] < width)
            part = tl.dot(left, tl.load(a_down + rank[:, None] * width + cols[None, :], mask=a_ok, other=0.0), input_precision="ieee")
            if DROP:
                bits = (h >> (16 * half)) & 0xFFFF
                part = tl.where(bits >= threshold.to(tl.uint32), part * inverse_keep, 0.0)
            d += part
        g = tl.load(gu_place, mask=ok, other=0.0).to(tl.float32)
        u = tl.load(gu_place + width, mask=ok, other=0.0).to(tl.float32)
        activated = _activate(g, GELU)
        tl.store(dh_place, (activated * u).to(dh.dtype.element_ty), mask=ok)
        tl.store(gu_place, (d * u * _activate_slope(g, GELU)).to(gu.dtype.element_ty), mask=ok)
        tl.store(gu_place + width, (d * activated).to(gu.dtype.element_ty), mask=ok)


@triton.jit
def norm_forward(x, delta, weight, total, y, rstd, width, eps, ADD: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """y = RMSNorm(x [+ delta]) * (weight [+ 1]); where ADD, total = x + delta. One row per program."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    ok = cols < width
    value = tl.load(x + row * width + cols, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + row * width + cols, mask=ok, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty)
        tl.store(total + row * width + cols, value, mask=ok)
        value = value.to(tl.float32)
    r = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(rstd + row, r)
    w = tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32) + OFFSET
    tl.store(y + row * width + cols, (value * r * w).to(y.dtype.element_ty), mask=ok)


@triton.jit
def norm_backward(dy, x, weight, rstd, dtotal, dx, width, ADD: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """dx = gradient through the norm [+ dtotal, the gradient that reached the residual stream beside it]."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    ok = cols < width
    r = tl.load(rstd + row)
    normed = tl.load(x + row * width + cols, mask=ok, other=0.0).to(tl.float32) * r
    wdy = tl.load(dy + row * width + cols, mask=ok, other=0.0).to(tl.float32) * (
        tl.load(weight + cols, mask=ok, other=0.0).to(tl.float32) + OFFSET
    )
    out = (wdy - normed * (tl.sum(wdy * normed, 0) / width)) * r
    if ADD:
        out += tl.load(dtotal + row * width + cols, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + row * width + cols, out.to(dx.dtype.element_ty), mask=ok)


@triton.jit
def _rotate_pair(first, second, c1, c2, s1, s2, BACKWARD: tl.constexpr):
    if BACKWARD:  # the transpose of the forward rotation
        return first * c1 + second * s2, second * c2 - first * s1
    else:
        return first * c1 - second * s1, second * c2 + first * s2


@triton.jit
def rope_forward(
    qkv,
    out,
    cos,
    sin,
    q_weight,
    k_weight,
    q_heads,
    k_heads,
    qkv_stride,
    out_stride,
    eps,
    rope_stride,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
):
    """Rotate the q and k heads of each row; where NORM, RMS-normalise each head first. `out` may be `qkv` itself where not NORM."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    real = heads < q_heads + k_heads
    lane = tl.arange(0, HALF)[None, :]
    source = qkv + row * qkv_stride + heads * HEAD
    target = out + row * out_stride + heads * HEAD
    half: tl.constexpr = ROTARY // 2
    ok = real & (lane < half)
    is_q = heads < q_heads
    if NORM:
        every = tl.arange(0, HEAD_BLOCK)[None, :]
        whole = tl.load(source + every, mask=real & (every < HEAD), other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(whole * whole, 1) / HEAD + eps)[:, None]
        if ROTARY < HEAD:
            w = tl.where(
                is_q,
                tl.load(q_weight + every, mask=every < HEAD, other=0.0).to(tl.float32),
                tl.load(k_weight + every, mask=every < HEAD, other=0.0).to(tl.float32),
            )
            tl.store(target + every, (whole * r * (w + OFFSET)).to(out.dtype.element_ty), mask=real & (every >= ROTARY) & (every < HEAD))
    first = tl.load(source + lane, mask=ok, other=0.0).to(tl.float32)
    second = tl.load(source + half + lane, mask=ok, other=0.0).to(tl.float32)
    lane_ok = lane < half
    if NORM:
        w1 = (
            tl.where(
                is_q,
                tl.load(q_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        w2 = (
            tl.where(
                is_q,
                tl.load(q_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        first = first * r * w1
        second = second * r * w2
    c1 = tl.load(cos + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    c2 = tl.load(cos + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s1 = tl.load(sin + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s2 = tl.load(sin + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    a, b = _rotate_pair(first, second, c1, c2, s1, s2, False)
    tl.store(target + lane, a.to(out.dtype.element_ty), mask=ok)
    tl.store(target + half + lane, b.to(out.dtype.element_ty), mask=ok)


@triton.jit
def rope_backward(
    grad,
    qkv,
    cos,
    sin,
    q_weight,
    k_weight,
    q_heads,
    k_heads,
    stride,
    eps,
    rope_stride,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """In place on grad (N, all heads): rotate back, then through the per-head norm of the raw projections in qkv. NORM needs ROTARY == HEAD."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    lane = tl.arange(0, HALF)[None, :]
    half: tl.constexpr = ROTARY // 2
    lane_ok = lane < half
    ok = (heads < q_heads + k_heads) & lane_ok
    place = grad + row * stride + heads * HEAD + lane
    c1 = tl.load(cos + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    c2 = tl.load(cos + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s1 = tl.load(sin + row * rope_stride + lane, mask=lane_ok, other=0.0).to(tl.float32)
    s2 = tl.load(sin + row * rope_stride + half + lane, mask=lane_ok, other=0.0).to(tl.float32)
    a, b = _rotate_pair(
        tl.load(place, mask=ok, other=0.0).to(tl.float32), tl.load(place + half, mask=ok, other=0.0).to(tl.float32), c1, c2, s1, s2, True
    )
    if NORM:
        source = qkv + row * stride + heads * HEAD + lane
        is_q = heads < q_heads
        x1 = tl.load(source, mask=ok, other=0.0).to(tl.float32)
        x2 = tl.load(source + half, mask=ok, other=0.0).to(tl.float32)
        r = tl.rsqrt((tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)) / HEAD + eps)[:, None]
        w1 = (
            tl.where(
                is_q,
                tl.load(q_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        w2 = (
            tl.where(
                is_q,
                tl.load(q_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
                tl.load(k_weight + half + lane, mask=lane_ok, other=0.0).to(tl.float32),
            )
            + OFFSET
        )
        a = a * w1
        b = b * w2
        x1 = x1 * r
        x2 = x2 * r
        mean = ((tl.sum(a * x1, 1) + tl.sum(b * x2, 1)) / HEAD)[:, None]
        a = (a - x1 * mean) * r
        b = (b - x2 * mean) * r
    tl.store(place, a.to(grad.dtype.element_ty), mask=ok)
    tl.store(place + half, b.to(grad.dtype.element_ty), mask=ok)


@triton.jit
def loss_rows(logits, targets, stats, inverse_count, width, stride, softcap, logit_scale, SOFTCAP: tl.constexpr, BLOCK: tl.constexpr):
    """One row of logits per program: stats = (negative log-likelihood, entropy, is top-1, is counted); logits become their gradient."""
    row = tl.program_id(0).to(tl.int64)
    place = logits + row * stride
    target = tl.load(targets + row)
    counted = target >= 0
    lanes = tl.arange(0, BLOCK)
    if counted:
        top = tl.full((BLOCK,), -float("inf"), dtype=tl.float32)
        norm = tl.zeros((BLOCK,), dtype=tl.float32)
        weighted = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            z = tl.load(place + cols, mask=cols < width, other=-float("inf")).to(tl.float32) * logit_scale
            if SOFTCAP:
                z = tl.where(cols < width, softcap * _tanh(z / softcap), -float("inf"))
            new_top = tl.maximum(top, z)
            shrink = tl.where(new_top == -float("inf"), 1.0, tl.exp(top - new_top))
            e = tl.where(cols < width, tl.exp(z - new_top), 0.0)
            norm = norm * shrink + e
            weighted = weighted * shrink + tl.where(e > 0, e * z, 0.0)
            top = new_top
        best = tl.max(top, 0)
        lane_shrink = tl.where(top == -float("inf"), 0.0, tl.exp(top - best))
        total = tl.sum(norm * lane_shrink, 0)
        mean_logit = tl.sum(weighted * lane_shrink, 0) / total
        lse = best + tl.log(total)
        z_target = tl.load(place + target).to(tl.float32) * logit_scale
        if SOFTCAP:
            z_target = softcap * _tanh(z_target / softcap)
        tl.store(stats + row * 4, lse - z_target)
        tl.store(stats + row * 4 + 1, lse - mean_logit)
        tl.store(stats + row * 4 + 2, tl.where(z_target >= best, 1.0, 0.0))
        tl.store(stats + row * 4 + 3, 1.0)
        inv = tl.load(inverse_count) * logit_scale
        for start in range(0, width, BLOCK):
            cols = start + lanes
            z = tl.load(place + cols, mask=cols < width, other=0.0).to(tl.float32) * logit_scale
            slope = inv
            if SOFTCAP:
                t = _tanh(z / softcap)
                z = softcap * t
                slope = inv * (1.0 - t * t)
            grad = (tl.exp(z - lse) - tl.where(cols == target, 1.0, 0.0)) * slope
            tl.store(place + cols, grad.to(logits.dtype.element_ty), mask=cols < width)
    else:
        zero = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            tl.store(place + cols, zero.to(logits.dtype.element_ty), mask=cols < width)
        lane4 = tl.arange(0, 4)
        tl.store(stats + row * 4 + lane4, tl.zeros((4,), dtype=tl.float32))


@triton.jit
def gather_rows(index, table, out, width, BLOCK: tl.constexpr):
    """out[i] = table[index[i]]; the table may lie in pinned host memory."""
    row = tl.program_id(0).to(tl.int64)
    source = table + tl.load(index + row) * width
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        tl.store(out + row * width + cols, tl.load(source + cols, mask=cols < width), mask=cols < width)
