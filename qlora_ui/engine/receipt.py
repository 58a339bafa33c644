"""The receipt of a run: everything that another person needs to believe, or repeat, its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_ui import __version__
from qlora_ui.base.files import sha256_of, write_json
from qlora_ui.hardware.gpu import driver_version
from qlora_ui.runs.read import RunView
from qlora_ui.runs.run_dir import ADAPTER_WEIGHTS


def write_receipt(view: RunView, data: Mapping[str, Any], base: Mapping[str, Any], predicted: Mapping[str, Any]) -> None:
    """Write receipt.json from what the journal says; `data` and `base` are hashes and counts of what went in."""
    started, planned, ended = view.started, view.planned, view.ended
    best = view.best_eval
    write_json(
        view.run.receipt_path,
        {
            "app_version": __version__,
            "run_id": view.id,
            "status": view.status.value,
            "created": _iso(view.created),
            "finished": _iso(ended.time) if ended else None,
            "settings": view.config.to_nested() if view.config else None,
            "base": dict(base),
            "data": dict(data),
            "versions": started.versions if started else {},
            "device": started.device if started else "",
            "driver": driver_version(),
            "launcher": started.launcher if started else "",
            "processes": planned.num_processes if planned else None,
            "plan": {
                "steps": planned.num_steps,
                "effective_batch": planned.effective_batch,
                "train_rows": planned.num_train_rows,
                "eval_rows": planned.num_eval_rows,
                "trainable_params": planned.trainable_params,
                "packed": planned.packed,
                "fast_path": list(planned.fast_path),
            }
            if planned
            else None,
            "predicted": dict(predicted),
            "measured": {
                "steps": view.step,
                "duration_s": round(view.elapsed_s, 1),
                "peak_bytes": view.peak_bytes,
                "peak_reserved_bytes": max((event.peak_reserved_bytes or 0 for event in view.memory), default=0) or None,
                "peak_process_bytes": max((event.process_bytes or 0 for event in view.memory), default=0) or None,
                "energy_j": view.energy_j,
                "tokens": view.steps[-1].tokens if view.steps else 0,
                "tokens_per_s": ended.tokens_per_s if ended else None,
                "first_loss": view.steps[0].loss if view.steps else None,
                "final_loss": ended.final_loss if ended else None,
                "best_eval_loss": best.loss if best else None,
                "best_eval_step": best.step if best else None,
            },
            "healed": [event.changes for event in view.notices if hasattr(event, "changes")],
            "adapter_sha256": _hash(view.run.adapter / ADAPTER_WEIGHTS),
        },
    )


def _hash(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
