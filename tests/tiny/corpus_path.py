"""The corpus of bad inputs, which stands one folder up so that it is a script too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("corpus", Path(__file__).resolve().parent.parent / "corpus.py")
assert _spec is not None and _spec.loader is not None
_corpus = importlib.util.module_from_spec(_spec)
sys.modules["corpus"] = _corpus
_spec.loader.exec_module(_corpus)

Bad, DATASETS, PRESETS, TEMPLATES, big = _corpus.Bad, _corpus.DATASETS, _corpus.PRESETS, _corpus.TEMPLATES, _corpus.big
PRESET_NAMES = _corpus.PRESET_NAMES

__all__ = ["DATASETS", "PRESETS", "PRESET_NAMES", "TEMPLATES", "Bad", "big"]
