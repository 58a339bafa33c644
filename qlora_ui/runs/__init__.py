"""The run directory, and the only road between the page and the engine."""
