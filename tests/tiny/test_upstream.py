"""What an option's `to=` names exists in the installed class, and is not swallowed."""

from __future__ import annotations

import inspect

import pytest

from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.settings.upstream import bnb_arguments, lora_arguments, sft_arguments

TARGETS = [(path, *option.meta.to.split(".", 1)) for path, option in option_by_path().items() if option.meta.to]


def parameters(owner: str) -> set[str]:
    import peft
    import transformers
    import trl

    cls = {"bnb": transformers.BitsAndBytesConfig, "lora": peft.LoraConfig, "sft": trl.SFTConfig}[owner]
    return set(inspect.signature(cls).parameters)


@pytest.mark.parametrize(("path", "owner", "name"), TARGETS)
def test_upstream_argument_exists(path: str, owner: str, name: str) -> None:
    assert name in parameters(owner), path


def test_derived_arguments_exist_too() -> None:
    config = RunConfig().changed({"train.schedule": "cosine_with_min_lr"})
    assert set(lora_arguments(config)) <= parameters("lora")
    assert set(sft_arguments(config, on_gpu=True, compute_dtype="bfloat16")) <= parameters("sft")
    assert set(bnb_arguments(config, "bfloat16")) <= parameters("bnb")


def test_bitsandbytes_reads_what_we_mean() -> None:
    import torch
    from transformers import BitsAndBytesConfig

    made = BitsAndBytesConfig(**bnb_arguments(RunConfig(), "bfloat16"))
    assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant, made.bnb_4bit_compute_dtype) == ("nf4", True, torch.bfloat16)
