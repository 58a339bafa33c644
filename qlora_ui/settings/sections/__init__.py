"""Every option of the product, one line each, a file for each section. A new option is a new line there and nothing else."""

from __future__ import annotations

from qlora_ui.settings.sections.data import BUILTIN_DATA, DataSection
from qlora_ui.settings.sections.eval import EvalSection
from qlora_ui.settings.sections.launch import LaunchSection
from qlora_ui.settings.sections.lora import LoraSection
from qlora_ui.settings.sections.model import BUILTIN_MODEL, ModelSection, pasted_model
from qlora_ui.settings.sections.output import OutputSection
from qlora_ui.settings.sections.quant import QuantSection
from qlora_ui.settings.sections.train import TrainSection

__all__ = [
    "BUILTIN_DATA",
    "BUILTIN_MODEL",
    "DataSection",
    "EvalSection",
    "LaunchSection",
    "LoraSection",
    "ModelSection",
    "OutputSection",
    "QuantSection",
    "TrainSection",
    "pasted_model",
]
