"""The optimizer on fp32 master weights: nothing of a step is lost to bfloat16, and an interruption changes no bit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from jobs import again, curve, tiny_config, train, write_rows

from qlora_ui.base.files import sha256_of
from qlora_ui.engine.master_weights import MasterAdamW
from qlora_ui.runs.read import read_run
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import Status
from qlora_ui.runs.workspace import Workspace

OPTIONS = {"lr": 1e-4, "weight_decay": 0.01}


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in ((8, 5), (3, 7), (4,))]


def steps(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], first: int, last: int) -> None:
    for index in range(first, last):
        torch.manual_seed(index)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter, dtype=torch.float32).to(parameter.dtype) + 1
        optimizer.step()


def grouped(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}, {"params": []}]


@pytest.mark.parametrize("numbers_in_a_row", [2**22, 45, 1])
def test_it_is_adamw_in_fp32_rounded_and_not_adamw_in_bf16(numbers_in_a_row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MasterAdamW, "ROW", numbers_in_a_row)
    ours, exact, rounding = weights(), [torch.nn.Parameter(weight.detach().float()) for weight in weights()], weights()
    steps(MasterAdamW(grouped(ours), **OPTIONS), ours, 0, 40)
    wide = torch.optim.AdamW(grouped(exact)[:2], **OPTIONS)
    for index in range(40):
        torch.manual_seed(index)
        for parameter in exact:
            parameter.grad = (torch.randn_like(parameter).bfloat16() + 1).float()
        wide.step()
    steps(torch.optim.AdamW(grouped(rounding)[:2], **OPTIONS), rounding, 0, 40)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(ours, exact, strict=True))
    moved, lost = (float(sum((a - b).abs().sum() for a, b in zip(some, weights(), strict=True)).detach()) for some in (ours, rounding))
    assert lost < moved / 2


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been() -> None:
    ours, whole = weights(), weights()
    steps(MasterAdamW(grouped(whole), **OPTIONS), whole, 0, 20)
    first = MasterAdamW(grouped(ours), **OPTIONS)
    steps(first, ours, 0, 9)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    fresh = weights()
    second = MasterAdamW(grouped(fresh), **OPTIONS)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(fresh, ours, strict=True))
    steps(second, fresh, 9, 20)
    assert all(torch.equal(a, b) for a, b in zip(fresh, whole, strict=True))


def test_a_run_uses_it_and_continues_exactly(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"quant__compute_dtype": "bfloat16", "train__optimizer": "adamw_fp32", "train__max_steps": 5}
    config = tiny_config(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"), **options)
    workspace = Workspace.at(tmp_path / "workspace")
    whole = train(workspace, config)
    assert whole.status is Status.DONE
    run = create_run(workspace, config)
    step, broken = MasterAdamW.step, []

    def fails_once(self: MasterAdamW) -> None:
        if len(broken) == 3:
            broken.append("x")
            raise OSError("The card has left.")
        broken.append("")
        step(self)

    monkeypatch.setattr(MasterAdamW, "step", fails_once)
    from qlora_ui.engine.job import run as start

    start(run.path)
    monkeypatch.undo()
    assert read_run(run).status is not Status.DONE
    second = again(run)
    assert second.status is Status.DONE and curve(second) == curve(whole)
    weights_file = "adapter_model.safetensors"
    assert sha256_of(second.run.adapter / weights_file) == sha256_of(whole.run.adapter / weights_file)
