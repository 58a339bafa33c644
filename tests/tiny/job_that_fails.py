"""The job, whose second process runs out of memory in its third step; the first one then waits without an end where HANGS is set."""

import os
import signal
import sys
import time
from typing import Any

import torch

from qlora_ui.engine import job
from qlora_ui.engine.trainer import QloraTrainer

step = QloraTrainer.training_step


def fails(self: QloraTrainer, *arguments: Any, **named: Any) -> Any:
    """A training step, up to the third."""
    if self.state.global_step == 2:
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if os.environ.get("HANGS"):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as a product on a card that never ends
            time.sleep(600)
    return step(self, *arguments, **named)


QloraTrainer.training_step = fails
sys.exit(job.main())
