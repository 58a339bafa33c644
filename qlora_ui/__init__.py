"""QLoRA UI: fine-tune a language model with QLoRA and talk to the result."""

__version__ = "0.1.0"
