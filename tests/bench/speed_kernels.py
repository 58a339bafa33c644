"""Time the LoRA and MLP kernels alone, in several launch configurations, at the shapes of 1.5B (2,048 tokens) and 8B (4,096 tokens).

usage: python tests/bench/speed_kernels.py            prints microseconds per configuration and the time that the bytes alone would take
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.testing import do_bench

from qlora_ui.engine.fast import triton_layers, triton_lora

SHAPES = {"1.5B": (2048, 1536, 1536, 256, 8960), "8B": (4096, 4096, 4096, 1024, 14336)}
BANDWIDTH = 3.0e12
Run = tuple[str, str, str, int, Callable[[], Any]]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def runs(shape: str) -> list[Run]:
    n, h, q, kv, f = SHAPES[shape]
    seed = torch.tensor([1, 2], dtype=torch.int32, device="cuda")
    wide, narrow = rand(n, 2 * f), rand(n, h)
    out: list[Run] = []
    down = [
        ("qkv", narrow, [h] * 3, [0] * 3, True),
        ("o", narrow, [h], [0], True),
        ("gu", narrow, [h, h], [0, 0], True),
        ("d", rand(n, f), [f], [0], True),
        ("back gu", wide, [f, f], [0, f], False),
        ("back o", narrow, [h], [0], False),
    ]
    for name, x, widths, columns, drop in down:
        j = len(widths)
        w = [rand(16, max(widths)) if drop else rand(max(widths), 16) for _ in range(3)]
        widths3, columns3 = (widths + widths[-1:] * 3)[:3], (columns + columns[-1:] * 3)[:3]
        result = torch.empty(n, j, 16, device="cuda", dtype=torch.bfloat16)
        for bm, warps, stages in ((16, 4, 3), (16, 4, 5), (32, 4, 4), (32, 8, 4), (16, 8, 4), (16, 2, 5), (64, 4, 4)):

            def call(  # noqa: PLR0917
                x: Any = x,
                w: Any = w,
                c: Any = columns3,
                k: Any = widths3,
                j: int = j,
                drop: bool = drop,
                bm: int = bm,
                warps: int = warps,
                stages: int = stages,
                result: Any = result,
            ) -> None:
                triton_lora.lora_down[(triton.cdiv(n, bm), j)](
                    x,
                    result,
                    seed,
                    *w,
                    *c,
                    *k,
                    1.0,
                    1.0,
                    1.0,
                    1,
                    2,
                    3,
                    n,
                    x.stride(0),
                    w[0].stride(0) if drop else 1,
                    1 if drop else 16,
                    (k[0] + 127) // 128 * 64,
                    3277,
                    RANK=16,
                    R=16,
                    J=j,
                    DROP=drop,
                    BM=bm,
                    num_warps=warps,
                    num_stages=stages,
                )

            out.append(("down", name, f"BM{bm} w{warps} s{stages}", n * 2 * (sum(widths) if len(set(columns)) > 1 else widths[0]), call))
    outer = [
        ("A qkv", narrow, [h] * 3, [0] * 3, True),
        ("A o", narrow, [h], [0], True),
        ("A d", rand(n, f), [f], [0], True),
        ("B gu", wide, [f, f], [0, f], False),
        ("B qkv", rand(n, q + 2 * kv), [q, kv, kv], [0, q, q + kv], False),
        ("B o", narrow, [h], [0], False),
    ]
    for name, x, widths, columns, drop in outer:
        j = len(widths)
        left = rand(n, j, 16)
        g = [rand(16 * k) for k in (widths + widths[-1:] * 3)[:3]]
        widths3, columns3 = (widths + widths[-1:] * 3)[:3], (columns + columns[-1:] * 3)[:3]
        for bn, bc, warps, stages in (
            (64, 32, 4, 3),
            (64, 64, 4, 3),
            (128, 32, 4, 3),
            (128, 64, 4, 3),
            (128, 64, 8, 3),
            (128, 16, 4, 4),
            (64, 32, 2, 5),
            (256, 32, 8, 2),
        ):

            def call2(  # noqa: PLR0917
                x: Any = x,
                left: Any = left,
                g: Any = g,
                c: Any = columns3,
                k: Any = widths3,
                j: int = j,
                drop: bool = drop,
                bn: int = bn,
                bc: int = bc,
                warps: int = warps,
                stages: int = stages,
            ) -> None:
                triton_lora.lora_outer[(triton.cdiv(max(k[:j]), bc), j)](
                    left,
                    x,
                    seed,
                    *g,
                    *c,
                    *k,
                    1.0,
                    1.0,
                    1.0,
                    1,
                    2,
                    3,
                    n,
                    x.stride(0),
                    (k[0] + 127) // 128 * 64,
                    3277,
                    RANK=16,
                    R=16,
                    J=j,
                    RANK_MAJOR=drop,
                    DROP=drop,
                    BN=bn,
                    BC=bc,
                    num_warps=warps,
                    num_stages=stages,
                )

            out.append(
                ("outer", name, f"BN{bn} BC{bc} w{warps} s{stages}", n * 2 * (sum(widths) if len(set(columns)) > 1 else widths[0]), call2)
            )
    xa, b, dh, gb, a = rand(n, 2, 16), rand(f, 16), rand(n, f), rand(n, 1, 16), rand(16, f)
    for keep in (False, True):
        for bm, bn, warps in ((32, 128, 4), (64, 64, 4), (32, 64, 4), (16, 128, 4), (64, 128, 8), (32, 256, 8)):

            def call3(keep: bool = keep, bm: int = bm, bn: int = bn, warps: int = warps) -> None:
                triton_layers.gated_forward[(triton.cdiv(n, bm), triton.cdiv(f, bn))](
                    wide,
                    xa,
                    dh,
                    b,
                    b,
                    1.0,
                    1.0,
                    n,
                    f,
                    1,
                    32,
                    RANK=16,
                    R=16,
                    HAS_GATE=True,
                    HAS_UP=True,
                    KEEP=keep,
                    GELU=False,
                    BM=bm,
                    BN=bn,
                    num_warps=warps,
                )

            out.append(("gated", f"forward keep={keep}", f"BM{bm} BN{bn} w{warps}", n * f * 2 * (5 if keep else 3), call3))
    for bm, warps in ((32, 4), (16, 4), (16, 2), (32, 8), (64, 8)):

        def call4(bm: int = bm, warps: int = warps) -> None:
            triton_layers.gated_backward[(triton.cdiv(n, bm), triton.cdiv(f, 128))](
                wide,
                dh,
                gb,
                seed,
                a,
                3,
                n,
                f,
                (f + 127) // 128 * 64,
                3277,
                1.05,
                RANK=16,
                R=16,
                HAS_DOWN=True,
                DROP=True,
                GELU=False,
                BM=bm,
                num_warps=warps,
            )

        out.append(("gated", "backward", f"BM{bm} w{warps}", n * f * 2 * 6, call4))
    return out


def main() -> None:
    if len(sys.argv) > 2:  # compile a share into the cache
        share, shares = int(sys.argv[1]), int(sys.argv[2])
        for _, _, _, _, call in runs("1.5B")[share::shares]:
            call()
        torch.cuda.synchronize()
        return
    for worker in [subprocess.Popen([sys.executable, __file__, str(i), "12"]) for i in range(12)]:
        worker.wait()
    for shape in SHAPES:
        table: dict[tuple[str, str], list[tuple[float, str]]] = {}
        ideal = {}
        for kind, name, config, num_bytes, call in runs(shape):
            table.setdefault((kind, name), []).append((do_bench(call, warmup=3, rep=12, return_mode="median") * 1000, config))
            ideal[kind, name] = num_bytes / BANDWIDTH * 1e6
        for key, times in table.items():
            print(
                f"{shape:5s} {key[0]:6s}{key[1]:20s} bytes {ideal[key]:5.0f} us | "
                + "  ".join(f"{c}: {t:.0f}" for t, c in [times[0], *sorted(times)[:4]]),
                flush=True,
            )


if __name__ == "__main__":
    main()
