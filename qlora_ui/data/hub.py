"""Datasets of the Hub: search, what subsets and splits there are, the first rows before a download, the download.

Only files of kinds that the reader knows are ever fetched, by the names that the Hub lists; scripts are not run and folders
are not loaded. The token comes from HF_TOKEN or the Hub's own login and is never held here.
"""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_ui.base.errors import DataError, ModelError
from qlora_ui.base.files import free_bytes, read_json, write_json
from qlora_ui.base.progress import Cancelled, IsCancelled, OnProgress, never, silent, stop_if
from qlora_ui.base.units import KIB, MIB, format_bytes
from qlora_ui.data.folders import DataFolders
from qlora_ui.models.hub import MAKE_ROOM, TIMEOUT_S, ask_once, endpoint, hub_errors, licence_in
from qlora_ui.models.hub_cache import DATASETS, cache_folder, download_mark

KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
CONVERTED = "refs/convert/parquet"
"""Where the Hub keeps its own Parquet copy of datasets whose files are of other kinds."""
PREVIEW_BYTES = 512 * KIB
ROOM_BYTES = 256 * MIB
"""Left free on the disk after a download."""
_PIECE_BYTES = 256 * KIB
_ROWS_SERVER = "https://datasets-server.huggingface.co"
_NO_DATA = ("dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "package.json")
_SPLIT = re.compile(r"(?:^|[/_.\-])(train(?:ing)?|validation|valid|val|dev|test|testing|eval|evaluation)(?:[/_.\-]|$)", re.IGNORECASE)
_STANDARD = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "testing": "test", "eval": "test",
             "evaluation": "test"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset that a search found."""

    id: str
    downloads: int
    is_gated: bool
    licence: str


@dataclass(frozen=True, slots=True)
class HubSplits:
    """What a dataset on the Hub holds."""

    id: str
    commit: str
    is_gated: bool
    licence: str
    subsets: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Subset (configuration) to split to its files."""
    sizes: Mapping[str, int]
    """File to bytes."""

    def subset(self, name: str | None) -> str:
        """The subset of that name; where none is given, the one that the Hub's own programs take."""
        return name or ("default" if "default" in self.subsets else next(iter(self.subsets)))

    def files(self, subset: str | None, split: str) -> tuple[str, ...]:
        """The files of a split; raises DataError naming the choices."""
        name = self.subset(subset)
        if name not in self.subsets:
            raise _error("DATA-SUBSET", f"{self.id} has no subset “{name}”.", "", f"There is: {', '.join(list(self.subsets)[:12])}.")
        splits = self.subsets[name]
        if split not in splits:
            raise _error("DATA-SPLIT", f"{self.id} has no split “{split}”.", "", f"There is: {', '.join(list(splits)[:12])}.")
        return splits[split]

    def num_bytes(self, subset: str | None, split: str) -> int:
        """What a download of a split brings."""
        return sum(self.sizes.get(name, 0) for name in self.files(subset, split))


def search(text: str, limit: int = 20) -> list[HubDataset]:
    """Datasets on the Hub whose name holds `text`, most downloaded first; raises DataError where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    with _hub_errors(text):
        ask_once()
        found = HfApi(endpoint=endpoint()).list_datasets(search=text.strip() or None, sort="downloads", limit=limit)
        return [HubDataset(info.id, info.downloads or 0, bool(info.gated), licence_in(info.tags)) for info in found]


def splits_of(repo: str, workspace: DataFolders) -> HubSplits:
    """Subsets and splits of a dataset; remembered, so that what was downloaded is found without a network.

    Raises DataError where the Hub cannot be asked, or no file is of a kind that can be read.
    """
    from huggingface_hub import HfApi

    note = workspace.cache / "hub-datasets" / f"{repo.replace('/', '--')}.json"
    try:
        with _hub_errors(repo):
            api = HfApi(endpoint=endpoint())
            info = api.dataset_info(repo, files_metadata=True, timeout=TIMEOUT_S)
            sizes = _sizes(info)
            subsets = _declared(info, sizes) or _by_names(sizes)
            commit = str(info.sha)
            if not subsets:
                info_converted = api.dataset_info(repo, revision=CONVERTED, files_metadata=True, timeout=TIMEOUT_S)
                sizes, commit = _sizes(info_converted), str(info_converted.sha)
                subsets = _converted(sizes)
    except DataError as error:
        known = read_json(note) if error.code == "hub-offline" else None
        if known is None:
            raise
        return HubSplits(**known)
    if not subsets:
        raise _error(
            "DATA-TYPE",
            f"{repo} has no file of a kind that can be read.",
            "Datasets that are programs or archives are not opened.",
            "Choose another; JSONL, JSON, CSV, TSV, Parquet and text are read.",
        )
    splits = HubSplits(repo, commit, bool(info.gated), licence_in(info.tags), subsets, sizes)
    write_json(note, {name: getattr(splits, name) for name in HubSplits.__dataclass_fields__})
    return splits


def download(
    repo: str,
    subset: str | None,
    split: str,
    workspace: DataFolders,
    *,
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> list[Path]:
    """The files of a split in the Hub's cache on this machine, fetched where they are not there.

    Raises DataError with what the Hub's refusal means, and Cancelled.
    """
    from huggingface_hub import constants, hf_hub_download

    on_progress(f"Asking the Hub for {repo}", None)
    splits = splits_of(repo, workspace)
    names = splits.files(subset, split)
    total = splits.num_bytes(subset, split)
    if _missing_bytes(splits, names):
        download_mark(repo, DATASETS).parent.mkdir(parents=True, exist_ok=True)
        download_mark(repo, DATASETS).touch()
    # The library looks up after every piece; pieces of 10 MB would keep a slow line silent, and deaf to a cancel, for too long.
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES
    paths, done = [], 0
    for name in names:
        stop_if(is_cancelled, f"The download of {repo}")
        on_progress(f"Downloading {repo}: {format_bytes(total)}", done / max(total, 1))
        bar = _progress_bar(repo, done, total, on_progress, is_cancelled)
        with _hub_errors(repo):
            path = hf_hub_download(
                repo,
                name,
                repo_type="dataset",
                revision=splits.commit,
                endpoint=endpoint(),
                cache_dir=cache_folder(),
                etag_timeout=TIMEOUT_S,
                tqdm_class=bar,
            )
        paths.append(Path(path))
        done += splits.sizes.get(name, 0)
        on_progress(f"Downloading {repo}", done / max(total, 1))
    return paths


def _missing_bytes(splits: HubSplits, names: Iterable[str]) -> int:
    """Bytes of the files that are not in the cache yet; raises DataError where they would fill the disk."""
    from huggingface_hub import try_to_load_from_cache

    def is_here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(splits.id, name, cache_folder(), splits.commit, "dataset"), str)

    missing = sum(splits.sizes.get(name, 0) for name in names if not is_here(name))
    free = free_bytes(cache_folder())
    if missing and missing + ROOM_BYTES > free:
        needed, room = format_bytes(missing), format_bytes(ROOM_BYTES)
        why = f"{needed} are to be downloaded, and {room} stay free for the work; {format_bytes(free)} are free."
        raise _error("hub-disk", f"There is not enough space for {splits.id}.", why, MAKE_ROOM)
    return missing


def first_rows(repo: str, subset: str | None, split: str, workspace: DataFolders, num_rows: int = 20) -> list[dict[str, Any]]:
    """The first rows of a split as the file has them, without downloading it.

    Of text files the first half megabyte is fetched and read in the confined child; Parquet files are asked of the Hub's own
    row service. Raises DataError.
    """
    splits = splits_of(repo, workspace)
    name = splits.files(subset, split)[0]
    if name.endswith(".parquet"):
        return _rows_of_service(repo, splits.subset(subset), split, num_rows)
    head = _head_of_file(repo, name, splits)
    from qlora_ui.data.load import RowFile
    from qlora_ui.data.parse import parse_file

    path = workspace.temp / f"{secrets.token_hex(6)}{PurePosixPath(name).suffix}"
    try:
        path.write_bytes(head)
        file = RowFile(parse_file(path, workspace, name=f"{repo}/{name}"))
        return [file[number].as_dict() for number in range(min(num_rows, len(file)))]
    finally:
        path.unlink(missing_ok=True)


def _head_of_file(repo: str, name: str, splits: HubSplits) -> bytes:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    with _hub_errors(repo):
        url = hf_hub_url(repo, name, repo_type="dataset", revision=splits.commit, endpoint=endpoint())
        headers = {**build_hf_headers(), "Range": f"bytes=0-{PREVIEW_BYTES - 1}"}
        head = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            for block in answer.iter_bytes():
                head += block
                if len(head) >= PREVIEW_BYTES:
                    break  # A server may send the whole file whatever was asked for.
    if len(head) < PREVIEW_BYTES:
        return bytes(head)
    return bytes(head[: head.rfind(b"\n") + 1] or head)


def _rows_of_service(repo: str, subset: str, split: str, num_rows: int) -> list[dict[str, Any]]:
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    server = os.environ.get("HF_DATASETS_SERVER") or _ROWS_SERVER
    with _hub_errors(repo):
        answer = get_session().get(
            f"{server}/first-rows",
            params={"dataset": repo, "config": subset, "split": split},
            headers=build_hf_headers(),
            timeout=TIMEOUT_S,
        )
        hf_raise_for_status(answer)
        try:
            rows = [row["row"] for row in answer.json()["rows"][:num_rows]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _error("hub-error", f"The Hub has no first rows of {repo}.", "", "Download it to see its rows.") from None
    return [row for row in rows if isinstance(row, dict)]


# What a listing of files means ---------------------------------------------------------------------------------------


def _sizes(info: Any) -> dict[str, int]:
    """Data files by name, with their bytes; names that would leave the folder are none."""
    sizes = {}
    for sibling in info.siblings or ():
        name = str(sibling.rfilename)
        parts = PurePosixPath(name).parts
        if name.lower().endswith(KINDS) and parts[-1] not in _NO_DATA and ".." not in parts and not name.startswith(("/", ".")):
            if parts[-1].lower() in ("readme.txt", "license.txt", "requirements.txt"):
                continue
            sizes[name] = int(sibling.size or 0)
    return sizes


def _declared(info: Any, names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Subsets as the dataset's card declares them: patterns of file names, matched against the listing and nothing else."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    subsets: dict[str, dict[str, tuple[str, ...]]] = {}
    for config in card.get("configs") or ():
        if not isinstance(config, dict) or "data_files" not in config:
            continue
        given = config["data_files"]
        if isinstance(given, str) or (isinstance(given, list) and all(isinstance(item, str) for item in given)):
            given = [{"split": "train", "path": given}]
        splits = {}
        for item in given if isinstance(given, list) else ():
            if not isinstance(item, dict):
                continue
            patterns = [item["path"]] if isinstance(item.get("path"), str) else item.get("path") or []
            matched = [name for name in names if any(_matches(name, str(pattern)) for pattern in patterns)]
            if matched:
                splits[str(item.get("split", "train"))] = tuple(sorted(matched))
        if splits:
            subsets[str(config.get("config_name", "default"))] = splits
    return subsets


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern.removeprefix("./")) or fnmatch.fnmatch(name, pattern.removeprefix("./").replace("**/", ""))


def _by_names(names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """One subset with splits by the usual words in file names; a file without one belongs to train."""
    splits: dict[str, list[str]] = {}
    for name in sorted(names):
        found = _SPLIT.search(PurePosixPath(name).with_suffix("").as_posix())
        word = found[1].lower() if found else "train"
        splits.setdefault(_STANDARD.get(word, word), []).append(name)
    # Files of several kinds are copies of each other as a rule: the kind with most files is taken.
    return {"default": {split: _one_kind(files) for split, files in splits.items()}} if splits else {}


def _one_kind(files: list[str]) -> tuple[str, ...]:
    kinds = [PurePosixPath(name).suffix.lower() for name in files]
    best = max(KINDS, key=lambda kind: (kinds.count(kind), -KINDS.index(kind)))
    return tuple(name for name, kind in zip(files, kinds, strict=True) if kind == best)


def _converted(names: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The layout of the Hub's Parquet copies: SUBSET/SPLIT/0000.parquet."""
    subsets: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if len(parts) == 3 and name.endswith(".parquet"):
            subsets.setdefault(parts[0], {}).setdefault(parts[1].removeprefix("partial-"), []).append(name)
    return {subset: {split: tuple(files) for split, files in splits.items()} for subset, splits in subsets.items()}


# Errors and progress -------------------------------------------------------------------------------------------------


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The Hub's refusals as a DataError, in the words that models have too."""
    try:
        with hub_errors(repo):
            yield
    except ModelError as error:
        problem = error.problems[0]
        fix = problem.fix.replace("huggingface.co/", "huggingface.co/datasets/").replace("choose a model that is on", "use a file on")
        raise _error(error.code, problem.what, problem.why.replace("no model", "no dataset"), fix) from None


def _error(code: str, what: str, why: str, fix: str) -> DataError:
    return DataError(what, why=why, fix=fix, where="data.sources", code=code)


def _progress_bar(repo: str, done: int, total: int, on_progress: OnProgress, is_cancelled: IsCancelled) -> Any:
    """A class in the place of tqdm's, which the Hub's library feeds: it tells the progress and stops on a wish."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self._mine = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            if is_cancelled():
                raise Cancelled(f"The download of {repo} was stopped.", fix="Start it again whenever you like.")
            self._mine += n or 0
            on_progress(
                f"Downloading {repo}: {format_bytes(done + self._mine)} of {format_bytes(total)}",
                min((done + self._mine) / max(total, 1), 1.0),
            )
            return None

    return Bar
