"""Pure functions from a run to what a page shows of it."""
