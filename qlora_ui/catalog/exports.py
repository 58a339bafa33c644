"""What a finished run can be taken away as. A new form is a line here and a function in engine/exports/."""

from __future__ import annotations

from dataclasses import dataclass

EXPORT_NOTES = "exports.json"
"""In a run's exports/: form to `{"sign", "note", "adapter_sha256"}`, how the last one of each compared with the chat, and what it is of."""


@dataclass(frozen=True, slots=True)
class ExportForm:
    """One way to take an adapter away."""

    name: str
    """The word of the command line."""
    title: str
    about: str
    """What it is for, in a sentence or two."""


EXPORT_FORMS: tuple[ExportForm, ...] = (
    ExportForm("adapter", "Adapter", "The small file that was trained, for use beside its base model. The form that loses nothing."),
    ExportForm(
        "merged-dequantized",
        "Whole model, as trained",
        "Base and adapter in one, in 16 bits, on the 4-bit weights that the adapter was trained with: answers as the chat does.",
    ),
    ExportForm(
        "merged-original",
        "Whole model, original weights",
        "Base and adapter in one, in 16 bits, on the original weights: often a little better, sometimes a little different.",
    ),
    ExportForm("gguf-q8_0", "GGUF, 8 bits", "One file for llama.cpp and what is built on it; half the size of 16 bits."),
    ExportForm("gguf-f16", "GGUF, 16 bits", "One file for llama.cpp, to quantize further there."),
    ExportForm("gguf-lora", "Adapter as GGUF", "The adapter for llama.cpp, beside a GGUF of its base."),
    ExportForm("ollama", "Ollama", "A folder with the model and a Modelfile whose template and stop words are right."),
)

SCRIPTS = {
    "script": ("A program", "train.py on plain transformers, peft and trl, with its rows: trains the same run without this app."),
    "trl-yaml": ("A TRL configuration", "The same for people who use “trl sft”."),
}
"""Title and purpose of the forms that train the run again."""
