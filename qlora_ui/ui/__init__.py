"""Where gradio lives."""

from qlora_ui.ui.quick_gradio import install

install()
