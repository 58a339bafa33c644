"""Imports everything that a job needs without touching the card, for a server that forks jobs."""

import os

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import torch

# bitsandbytes asks the card for its capability when it is imported, and CUDA does not survive a fork.
_asked = torch.cuda.get_device_capability
torch.cuda.get_device_capability = lambda device=None: (9, 0)

import transformers.models.llama.modeling_llama  # noqa: E402
import transformers.models.qwen2.modeling_qwen2  # noqa: E402, F401

import qlora_ui.engine.job  # noqa: E402, F401

torch.cuda.get_device_capability = _asked
