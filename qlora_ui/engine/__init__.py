"""Where torch lives: loading, training, chat, evaluation, exports."""

import logging
import os
import warnings

from qlora_ui.hardware.system import ALLOCATOR_VARIABLES, GROWING_SEGMENTS, grows_segments

# torch reads it once, when it first allocates on a card. The user's own choice stands.
if grows_segments() and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
    os.environ[ALLOCATOR_VARIABLES[0]] = GROWING_SEGMENTS

# Lines of the libraries about choices that were made here on purpose; a user could not act on any of them.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
for message in (r".*is_gradient_checkpointing.*", r".*gradient_checkpointing.*deprecated.*", r".*torch\.jit\.script_method.*"):
    warnings.filterwarnings("ignore", message=message)
