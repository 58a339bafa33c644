"""A model folder, read as plain JSON and safetensors headers: what it holds, and why it would be refused.

Everything here runs before any library that could act on what a folder says sees it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.units import KIB, MIB, format_bytes
from qlora_ui.models.architecture import facts_from_config
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.hub_cache import folder_title

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
INDEX = "model.safetensors.index.json"
INCOMPLETE = ("model-shards", "model-weights", "model-missing", "model-tokenizer", "model-corrupt")
"""Codes of what a download of the same model brings or mends."""
MAX_JSON_BYTES = 4 * MIB
MAX_TOKENIZER_BYTES = 100 * MIB
"""The largest tokenizers in use take 35 MB."""
MAX_HEADER_BYTES = 100 * MIB
MAX_TEMPLATE_BYTES = 64 * KIB
"""Of a chat template, in a file of its own or in the tokenizer's settings; the trial of the densest ends in time."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_QUANTIZATION_KEYS = ("quantization_config", "quantization")
"""The second is MLX's, which alone its older 4-bit folders have."""
_HEAD = "lm_head.weight"
"""The output layer, as every supported family names it."""
_CODE_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code", "custom_pipelines")
_SHARD = re.compile(r"^model-\d{5}-of-(\d{5})\.safetensors$")


def read_folder(folder: Path) -> ModelFacts:
    """The facts of a model folder; raises ModelError, with the reason, where it cannot or must not be used."""
    config = refuse_unsafe(folder)
    weights = weight_files(folder)
    shapes = {name: shape for file in weights for name, shape in _tensor_shapes(file)}
    facts = replace(
        facts_from_config(config),
        stored_params=sum(map(math.prod, shapes.values())),
        stored_bytes=sum(file.stat().st_size for file in weights),
        licence=read_licence(folder),
        has_chat_template=has_chat_template(folder),
    )
    if not facts.is_tied and _HEAD not in shapes:
        raise ModelError(
            f"The weights of {folder_title(folder)} lack the output layer ({_HEAD}).",
            why="It has one of its own, apart from the embeddings; without it training would use a random one. Embedding models come so.",
            fix="Choose the original model that writes text.",
            where="model.id",
            code="model-no-text",
        )
    stored = facts.stored_params or 0
    if stored < facts.num_params:
        raise ModelError(
            f"The weights of {folder_title(folder)} are not all there: {stored:,} of {facts.num_params:,} numbers.",
            why="Training would use random ones for the rest. Weights that were quantized before, as for GPTQ, come so too.",
            fix="Download or copy the original model, in 16 bits.",
            where="model.id",
            code="model-partial",
        )
    return facts


def refuse_unsafe(folder: Path) -> dict[str, Any]:
    """The folder's config.json, once nothing speaks against the folder.

    Raises ModelError for folders that are no model, bring code of their own, hold pickled or already quantized weights, or are
    incomplete.
    """
    if not os.path.isdir(folder):
        raise _no_folder(str(folder))
    config = _read_json(folder / "config.json")
    refuse_config(config, folder_title(folder))
    if (folder / "tokenizer_config.json").is_file():
        _refuse_code(_read_json(folder / "tokenizer_config.json"), f"{folder_title(folder)}/tokenizer_config.json")
    weight_files(folder)
    _refuse_tokenizer(folder)
    return config


def _no_folder(text: str) -> ModelError:
    """Nothing is there by that name; how it was pasted may be why."""
    on_the_hub = re.search(r"(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", text)
    if on_the_hub:
        fix = f"Write a model of the Hub by its name alone: {on_the_hub[1]}"
    elif text[:1] in ("'", '"') or text.startswith("file:"):
        fix = "Write the path by itself, without quotation marks or “file:”."
    elif os.path.isfile(text):
        fix = "That is a file: choose the folder that it is in."
    else:
        fix = "Put it back if it was moved, or choose a folder that holds a config.json; a model of the Hub is named OWNER/NAME."
    return ModelError(f"There is no folder {text[:200]}.", fix=fix, where="model.id", code="model-missing")


def refuse_config(config: Mapping[str, Any], name: str) -> None:
    """Raise ModelError where a config.json asks for code, is quantized already or is of a kind that the app does not train."""
    _refuse_code(config, f"{name}/config.json")
    if given := next((config[key] for key in _QUANTIZATION_KEYS if config.get(key)), None):
        method = str(given.get("quant_method", f"{given.get('bits', 4)}-bit") if isinstance(given, Mapping) else given)[:30]
        raise ModelError(
            f"The weights of {name} are already quantized ({method}).",
            why="QLoRA makes its own 4-bit copy from 16-bit weights; quantizing twice loses more, and cannot be undone for an export.",
            fix="Choose the original model, in 16 bits.",
            where="model.id",
            code="model-quantized",
        )
    facts_from_config(config)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, all of them present and whole.

    Raises ModelError for pickled weights, none, missing shards (named) and files cut short.
    """
    if (folder / INDEX).is_file():
        names = _names_in_index(folder)
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        names = _names_from_shards(folder)
    if not names:
        _refuse_without_safetensors(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}.",
            why="The download or copy was not finished.",
            fix="Download or copy the model again; what is there is kept.",
            where=str(folder),
            code="model-shards",
        )
    files = [folder / name for name in names]
    for file in files:
        _refuse_broken(file)
    return files


def read_header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, without its `__metadata__`.

    Raises ModelError where the file is not one.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _broken(file, "Its header is longer than the file.")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise _broken(file, "Its header is not JSON.") from None
    if not isinstance(header, dict):
        raise _broken(file, "Its header is not a list of tensors.")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def read_licence(folder: Path) -> str:
    """The licence that the model card names, as the Hub writes it (`apache-2.0`) or by the name that its maker gave it; else empty."""
    found = licence_in_card(folder)
    return found.get("license_name", "other") if found.get("license") == "other" else found.get("license", "")


def licence_in_card(folder: Path) -> dict[str, str]:
    """The lines of the model card that name the licence: `license`, and beside `other` its `license_name` and `license_link`."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:65536]
    except OSError:
        return {}
    front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    return dict(re.findall(r"^(license|license_name|license_link):[ \t]*[\"']?([^\s\"']+)", front, re.M))


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer brings a chat template."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path).get("chat_template"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise _bad_json(path, f"It takes {format_bytes(path.stat().st_size)}, a settings file a few KiB.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.name == "config.json" and (path.parent / "adapter_config.json").is_file():
            raise _adapter(path.parent) from None
        raise ModelError(
            f"The folder {folder_title(path.parent)} holds no {path.name}.",
            why="Every model that transformers reads has one.",
            fix="Choose the folder that the model's files are in; GGUF files alone cannot be trained.",
            where=str(path.parent),
            code="model-missing",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _bad_json(path, f"It is not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise _bad_json(path, "It holds no settings.")
    return value


def _adapter(folder: Path) -> ModelError:
    """An adapter's folder, chosen as the model."""
    base = str(_read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    return ModelError(
        f"The folder {folder_title(folder)} holds an adapter, no model.",
        why=f"It belongs to {base[:120]}." if base else "It belongs to a base model.",
        fix="Choose that as the base; a run goes on from an adapter that “Start from an adapter” on the Recipe tab names.",
        where="model.id",
        code="model-adapter",
    )


def _bad_json(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path.name} of {folder_title(path.parent)} cannot be read.",
        why=why,
        fix="Download the model again.",
        where=str(path),
        code="model-config",
    )


def _refuse_code(value: object, where: str) -> None:
    key = next((key for key in _keys(value) if key in _CODE_KEYS), None)
    if key is None:
        return
    raise ModelError(
        f"{where} asks for program code that comes with the model (“{key}”).",
        why="Such code could do anything on this computer, so the app never runs it and has no switch for it.",
        fix="Choose a model that transformers supports by itself; most have a version without code of their own.",
        where="model.id",
        code="model-code",
    )


def _keys(value: object, depth: int = 0) -> Iterator[str]:
    """All keys of nested JSON; deeper than any real configuration, it stops."""
    if depth > 20:
        return
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _keys(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner, depth + 1)


def _names_in_index(folder: Path) -> list[str]:
    weight_map = _read_json_large(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_json(folder / INDEX, "It lists no weights.")
    names = sorted({str(name) for name in weight_map.values()})
    strange = next((name for name in names if Path(name).name != name or not name.endswith(".safetensors")), None)
    if strange is not None:
        raise _bad_json(folder / INDEX, f"It names “{strange[:80]}”, which is no safetensors file of this folder.")
    return names


def _read_json_large(path: Path) -> dict[str, Any]:
    """An index: tens of MiB for the largest models."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= 16 * MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _bad_json(path, "It is not readable JSON.")
    return value


def _names_from_shards(folder: Path) -> list[str]:
    """All names of a sharded model whose index is absent, from any shard that is there."""
    counts = [int(match[1]) for file in folder.iterdir() if (match := _SHARD.match(file.name))]
    return [f"model-{i:05}-of-{counts[0]:05}.safetensors" for i in range(1, counts[0] + 1)] if counts and counts[0] < 10_000 else []


def _refuse_without_safetensors(folder: Path) -> None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES and file.name != "training_args.bin")
    if pickles:
        raise ModelError(
            f"The folder {folder_title(folder)} has its weights as {pickles[0]} only.",
            why="That format (pickle) can run code when it is opened, so the app does not open it.",
            fix="Choose a version of the model with .safetensors files.",
            where="model.id",
            code="model-pickle",
        )
    if (folder / "adapter_config.json").is_file():
        raise _adapter(folder)
    raise ModelError(
        f"The folder {folder_title(folder)} holds no weights.",
        why="There is no .safetensors file in it.",
        fix="Download or copy the model again.",
        where="model.id",
        code="model-weights",
    )


def _refuse_broken(file: Path) -> None:
    ends = [entry["data_offsets"][1] for entry in read_header(file).values() if _is_tensor(entry)]
    with file.open("rb") as stream:
        header_bytes = 8 + struct.unpack("<Q", stream.read(8))[0]
    expected, found = header_bytes + max(ends, default=0), file.stat().st_size
    if found != expected:
        raise _broken(file, f"It takes {format_bytes(found)}; its header says {format_bytes(expected)}.")


def _is_tensor(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    offsets, shape = entry.get("data_offsets"), entry.get("shape")
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(isinstance(number, int) for number in offsets)
        and isinstance(shape, list)
        and all(isinstance(number, int) and number >= 0 for number in shape)
    )


def _tensor_shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    for name, entry in read_header(file).items():
        if _is_tensor(entry):
            yield name, entry["shape"]


def _broken(file: Path, why: str) -> ModelError:
    return ModelError(
        f"The weight file {file.name} is damaged or not complete.",
        why=why,
        fix="Download or copy it again.",
        where=str(file),
        code="model-corrupt",
    )


def _refuse_tokenizer(folder: Path) -> None:
    present = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not present:
        raise ModelError(
            f"The folder {folder_title(folder)} holds no tokenizer.",
            why="Without tokenizer.json or tokenizer.model no text can be turned into tokens.",
            fix="Copy the tokenizer's files of the same model into the folder.",
            where="model.id",
            code="model-tokenizer",
        )
    template = folder / "chat_template.jinja"
    for file in (*present, template):
        limit = MAX_TEMPLATE_BYTES if file == template else MAX_TOKENIZER_BYTES
        otherwise = ", take that file away and choose a built-in chat template" if file == template else ""
        if file.is_file() and file.stat().st_size > limit:
            raise ModelError(
                f"{file.name} of {folder_title(folder)} takes {format_bytes(file.stat().st_size)}.",
                why=f"More than {format_bytes(limit)} are not read.",
                fix=f"Download the model again{otherwise}, or choose another.",
                where="model.id",
                code="model-tokenizer",
            )
