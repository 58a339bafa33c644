"""Where torch lives: loading, training, chat, evaluation, exports."""

import logging
import warnings

# Lines of the libraries about choices that were made here on purpose; a user could not act on any of them.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.getMessage())
for message in (r".*is_gradient_checkpointing.*", r".*gradient_checkpointing.*deprecated.*", r".*torch\.jit\.script_method.*"):
    warnings.filterwarnings("ignore", message=message)
