"""Where gradio lives."""
