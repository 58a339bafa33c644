"""Looking things up on the Hub: search, sizes, and what its refusals mean.

Only names that the user typed or chose are asked for, and only when they ask. The token comes from HF_TOKEN or the Hub's own
login and is never held here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.base.files import DISK_FULL, read_json
from qlora_ui.models.architecture import SUPPORTED_TYPES, facts_from_config
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.folder import PICKLES, refuse_config
from qlora_ui.models.hub_cache import cache_folder, cached_snapshot

TIMEOUT_S = 15
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
MAKE_ROOM = "Free some space, or move the Hub's cache with HF_HOME."
_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model that a search found."""

    id: str
    downloads: int
    num_params: int | None
    is_gated: bool
    licence: str
    model_type: str


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model that training needs."""

    name: str
    num_bytes: int
    sha256: str
    """Of large files; empty where the Hub keeps none."""


@dataclass(frozen=True, slots=True)
class HubDetails:
    """What the Hub says of one version of a model."""

    id: str
    commit: str
    files: tuple[HubFile, ...]
    facts: ModelFacts
    num_params: int | None
    is_gated: bool
    licence: str

    @property
    def size_bytes(self) -> int:
        """What a download brings."""
        return sum(file.num_bytes for file in self.files)


def search(text: str, limit: int = 20) -> list[HubModel]:
    """Text-generation models on the Hub whose name holds `text`, most downloaded first, of types that the app can train.

    Raises ModelError where the Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    with hub_errors(text):
        ask_once()
        found = HfApi(endpoint=endpoint()).list_models(
            search=text.strip() or None,
            pipeline_tag="text-generation",
            sort="downloads",
            limit=3 * limit,
            expand=["downloads", "safetensors", "gated", "config", "tags"],
        )
        models = [_found(info) for info in found]
    return [model for model in models if model.model_type in SUPPORTED_TYPES][:limit]


def describe(model_id: str, revision: str | None = None) -> HubDetails:
    """Files, sizes and shape of a model on the Hub; downloads nothing but its config.json.

    Raises ModelError where the Hub cannot be asked, or the model is one that the app refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with hub_errors(model_id, revision):
        info = HfApi(endpoint=endpoint()).model_info(model_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        names = {sibling.rfilename for sibling in info.siblings or ()}
        _refuse_files(model_id, names)
        path = hf_hub_download(
            model_id, "config.json", revision=info.sha, endpoint=endpoint(), cache_dir=cache_folder(), etag_timeout=TIMEOUT_S
        )
    config = read_json(Path(path))
    if not isinstance(config, dict):
        raise _error(
            "model-config", f"The config.json of {model_id} cannot be read.", "It holds no settings in JSON.", "Choose another model."
        )
    refuse_config(config, model_id)
    return HubDetails(
        id=model_id,
        commit=str(info.sha),
        files=tuple(_file(sibling) for sibling in info.siblings or () if _is_needed(sibling.rfilename)),
        facts=facts_from_config(config),
        num_params=info.safetensors.total if info.safetensors else None,
        is_gated=bool(info.gated),
        licence=licence_in(info.tags),
    )


def ask_once() -> None:
    """Raise at once where the Hub does not answer: a search of its library tries again for 24 s before it gives up."""
    from huggingface_hub import constants, get_session

    get_session().head(endpoint() or constants.ENDPOINT, timeout=TIMEOUT_S)


def endpoint() -> str | None:
    """The Hub's address where the user has one of their own."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def hub_errors(model_id: str, revision: str | None = None) -> Iterator[None]:
    """Failures of the Hub's library inside become a ModelError in words."""
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, HFValidationError, OSError) as error:
        raise in_words(error, model_id, revision) from None


def in_words(error: BaseException, model_id: str, revision: str | None = None) -> ModelError:
    """What a failure of the Hub's library means and what to do: offline, 401, 403, 404, 429, disk, and the rest."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # "not in the cache, and asking failed": what failed is the news
        return in_words(error.__cause__, model_id, revision)
    if isinstance(error, HFValidationError):
        return _error("hub-name", f"“{model_id[:80]}” is not a name on the Hub.", "", "Names look like OWNER/NAME.")
    if isinstance(error, RevisionNotFoundError):
        return _error(
            "hub-404", f"{model_id} has no version “{revision}”.", "", "Leave the version empty, or give a branch, tag or commit."
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status is not None:
        what, why, fix = _BY_STATUS.get(status, _OTHER_STATUS)
        code = f"hub-{status}" if status in _BY_STATUS else "hub-error"
        return _error(code, what.format(id=model_id, status=status), why, fix.format(id=model_id))
    # What the network refuses names no file.
    if isinstance(error, OSError) and (error.filename or error.errno in (*DISK_FULL, *_FORBIDDEN, errno.EROFS)):
        return _of_the_disk(model_id, error)
    copy = cached_snapshot(model_id) if "/" in model_id else None
    here = " A copy is on this computer: leave the version empty to use it." if copy and revision not in (None, "main") else ""
    return _error(
        "hub-offline",
        "The Hub cannot be reached.",
        "This computer is offline, the Hub is switched off by HF_HUB_OFFLINE, or a proxy is in the way.",
        f"Check the connection, or choose a model that is on this computer.{here}",
    )


def _of_the_disk(model_id: str, error: OSError) -> ModelError:
    """What the disk of the Hub's cache refused."""
    if error.errno in DISK_FULL:
        return disk_full(model_id, f"The disk of {cache_folder()} filled up on the way; what came is kept.")
    if error.errno == errno.EROFS:
        why = "Its disk can only be read."
    elif error.errno in _FORBIDDEN:
        why = "It, or what is in it, belongs to another user or is write-protected."
    else:
        why = f"The system says: {error.strerror}."
    fix = "Make it a folder that you may write to, or set HF_HOME to one and start the app again."
    return _error("hub-folder", f"{error.filename or cache_folder()} cannot be written.", why, fix)


def disk_full(model_id: str, why: str) -> ModelError:
    """No room for a download."""
    return _error("hub-disk", f"There is not enough space for {model_id}.", why, MAKE_ROOM)


_BY_STATUS: Mapping[int, tuple[str, str, str]] = {
    401: (
        "The Hub does not show {id} to strangers.",
        "It is gated or private, or there is no model of that name; the Hub does not say which.",
        "Check the spelling; accept the licence on https://huggingface.co/{id} and log in with “hf auth login” or HF_TOKEN.",
    ),
    403: (
        "Your Hub account may not download {id}.",
        "Its owners have not given you access, or the token may not read gated models.",
        "Ask for access on https://huggingface.co/{id}, and give the token the right to read gated models.",
    ),
    404: ("There is no {id} on the Hub.", "", "Check the spelling, or search for it."),
    429: (
        "The Hub asks to slow down.",
        "Too many requests came from this address.",
        "Wait some minutes and start again; what came is kept. Being logged in raises the limit.",
    ),
}
_OTHER_STATUS = ("The Hub has a problem of its own (error {status}).", "", "Try again later; what came is kept.")


def _error(code: str, what: str, why: str, fix: str) -> ModelError:
    return ModelError(what, why=why, fix=fix, where="model.id", code=code)


def _refuse_files(model_id: str, names: set[str]) -> None:
    """Raise ModelError where a model has no config.json or no safetensors, before anything is downloaded."""
    if any(name.endswith(".safetensors") and "/" not in name for name in names) and "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise _error("model-weights", f"{model_id} is an adapter.", "It belongs to a base model.", "Choose the base model.")
    if any(name.endswith(PICKLES) for name in names):
        raise _error(
            "model-pickle",
            f"{model_id} has no safetensors weights.",
            "Its weights are pickles, a format that can run code when it is opened.",
            "Choose a version of the model with .safetensors files.",
        )
    raise _error("model-weights", f"{model_id} holds no model that can be trained.", "It has no safetensors weights.", "Choose another.")


def _is_needed(name: str) -> bool:
    """Files in the top folder that transformers reads; Mistral's `consolidated` is the same weights a second time."""
    # A backslash leads to another folder on Windows.
    return "/" not in name and "\\" not in name and name.endswith(_SUFFIXES) and not name.startswith(("consolidated", "."))


def _file(sibling: Any) -> HubFile:
    sha256 = str(sibling.lfs.sha256) if sibling.lfs else ""
    return HubFile(sibling.rfilename, int(sibling.size or 0), sha256 if _SHA256.match(sha256) else "")


def _found(info: Any) -> HubModel:
    config = info.config or {}
    total = info.safetensors.total if info.safetensors else None
    return HubModel(info.id, int(info.downloads or 0), total, bool(info.gated), licence_in(info.tags), str(config.get("model_type") or ""))


def licence_in(tags: Iterable[str] | None) -> str:
    """The licence that a repository's tags name; empty where they name none."""
    return next((tag.removeprefix("license:") for tag in tags or () if tag.startswith("license:")), "")
