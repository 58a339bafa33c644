"""Taking a trained adapter away: as itself, merged, as GGUF, for Ollama. Light to import; torch comes with the first merge."""
