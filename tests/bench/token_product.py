"""The 4-bit product of a decode step by itself: microseconds and bytes a second of each way to look codes up, for each tile.

usage: python tests/bench/token_product.py [--rows 1] [--quick] [--out FILE]
Every launch reads other weights than the last ones, more than the card's second-level cache holds. `now` is the tile that the product
takes, `best` the fastest of all tried.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bitsandbytes as bnb
import torch

from qlora_ui.engine.fast.token_ops import TokenProjection

SHAPES = {
    "1.5B q, k, v": (1536, (1536, 256, 256)),
    "1.5B gate, up": (1536, (8960, 8960)),
    "1.5B down": (8960, (1536,)),
    "8B q, k, v": (4096, (4096, 1024, 1024)),
    "8B o": (4096, (4096,)),
    "8B gate, up": (4096, (14336, 14336)),
    "8B down": (14336, (4096,)),
}
TILES = [tile for tile in itertools.product((2, 4, 8), (4, 8, 16, 32), (1, 2, 4)) if 16 <= tile[0] * tile[1] <= 128]
SPREAD_BYTES = 200 << 20
LAUNCHES = 40


def layers(num_in: int, sizes: tuple[int, ...]) -> list[bnb.nn.Linear4bit]:
    """A group of projections with random weights."""
    made = []
    for size in sizes:
        layer = bnb.nn.Linear4bit(num_in, size, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(torch.randn(size, num_in, dtype=torch.bfloat16) * 0.02, requires_grad=False, quant_type="nf4")
        made.append(layer.cuda())
    return made


def microseconds(calls: list[Any]) -> float:
    """Median time of one call, of all of them captured one after another."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(1000 * sorted(times)[len(times) // 2] / len(calls))


def measure(name: str, rows: int, tiles: list[tuple[int, int, int]]) -> dict[str, Any]:
    """One shape: bitsandbytes, look-ups and permutation at today's tile, and the best tile of the latter."""
    num_in, sizes = SHAPES[name]
    num_bytes = num_in * sum(sizes) // 2 + num_in * sum(sizes) // 64
    copies = max(2, min(LAUNCHES, -(-SPREAD_BYTES // num_bytes)))
    groups = [TokenProjection(layers(num_in, sizes)) for _ in range(copies)]
    x = torch.randn(rows, num_in, dtype=torch.bfloat16, device="cuda")
    chosen = [groups[number % copies] for number in range(LAUNCHES)]
    row: dict[str, Any] = {"shape": name, "rows": rows, "bytes": num_bytes}
    one = x if rows == 1 else x[:1]
    row["bnb_us"] = microseconds([lambda g=g: [layer(one) for layer in g.layers] for g in chosen])
    want = torch.cat([layer(x) for layer in chosen[0].layers], 1).float()
    for way, permutes in (("looked up", False), ("permuted", True)):
        for group in groups:
            vars(group)["_permutes"] = lambda x, permutes=permutes: permutes
        error = (chosen[0](x).float() - want).abs().mean() / want.abs().mean()
        found = {"now": microseconds([lambda g=g: g(x) for g in chosen])}
        for tile in tiles if permutes else []:
            cut = (tile[0], min(tile[1], 1 << (num_in // 64 - 1).bit_length()), tile[2])
            for group in groups:
                vars(group)["_tile"] = lambda device, blocksize, cut=cut: cut
            found[" ".join(map(str, tile))] = microseconds([lambda g=g: g(x) for g in chosen])
        for group in groups:
            vars(group).pop("_tile", None)
        best = sorted((time, tile) for tile, time in found.items())[:4]
        row[way] = {"now_us": found["now"], "best": best, "tb_s": num_bytes / best[0][0] / 1e6, "error": float(error), "all": found}
        print(
            f"{name:14s} {rows} {way:10s} bnb {row['bnb_us']:.1f}  now {found['now']:.1f}  "
            + "  ".join(f"({tile}) {time:.1f}" for time, tile in best)
            + f"  {row[way]['tb_s']:.2f} TB/s  error {float(error):.4f}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="today's tiles only")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    with torch.inference_mode():
        rows = [measure(name, words.rows, [] if words.quick else TILES) for name in SHAPES]
    if words.out:
        about = {"card": torch.cuda.get_device_name(), "versions": {"torch": torch.__version__, "bitsandbytes": bnb.__version__}}
        words.out.write_text(json.dumps({**about, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
