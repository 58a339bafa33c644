"""Where torch lives: loading, training, chat, evaluation, exports."""
