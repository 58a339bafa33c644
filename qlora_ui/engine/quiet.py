"""Libraries that talk to nobody: the journal tells what happens, and stdout belongs to the caller."""

from __future__ import annotations

import logging
import warnings

import datasets
import transformers

NOISY = ("transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


def hush() -> None:
    """No progress bars and no advice."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # gradient_checkpointing has a new name in transformers 5, but TRL 1.16 reads the old one; remove with the pin.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\..*")
