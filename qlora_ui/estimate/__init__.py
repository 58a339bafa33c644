"""Settings in, numbers out: memory, time, advice. No torch."""
