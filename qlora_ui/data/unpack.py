"""A packed file with rows in it: a gzip, or a zip with one data file. Unpacked by the confined child, up to a bound, as a stream."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import DISK_FULL
from qlora_ui.base.units import MIB, format_bytes

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
OFFICE = b"[Content_Types].xml"
"""First in every workbook and document of newer Office programs, which are zip archives too."""
OFFICE_PARTS = frozenset(("[Content_Types].xml", "mimetype"))
"""Files that tell a workbook from a plain archive wherever they stand in it: some programs write them last, LibreOffice another one."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_BLOCK = MIB
_SHOWN_NAMES = 3


def is_packed(path: Path) -> bool:
    """Whether a file is an archive that `unpack` may find rows in, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(256)
    return head.startswith(GZIP) or (head.startswith(ZIP) and OFFICE not in head)


def unpack(job: dict[str, Any]) -> dict[str, Any]:
    """Write what is packed into the job's folder, at most `most_bytes` of it; returns the name that it has. Raises DataError."""
    path, name, most = Path(job["path"]), str(job["name"]), int(job["most_bytes"])
    target = Path(job["folder"]) / "unpacked"
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == GZIP
        if is_gzip:
            with gzip.open(path) as packed:
                _write(packed, target, name, most)
            inside = PurePosixPath(name)
            return {"name": inside.stem if inside.suffix.lower() in (".gz", ".gzip") else name}
        with zipfile.ZipFile(path) as archive:
            entry = _data_file(archive, name)
            with archive.open(entry) as packed:
                _write(packed, target, name, most)
            return {"name": PurePosixPath(entry.filename).name}
    except (DataError, MemoryError):
        raise
    except NotImplementedError:
        raise _refusal("The archive is packed in a way that is not known here.", name, "Unpack it, and upload the file in it.") from None
    # Each way of packing has errors of its own for what is damaged (bzip2 an OSError, zstd one that only Python 3.14 knows), and zipfile
    # lets them pass, with the IndexError of a name that is empty.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise _refusal("The archive is damaged or was cut off.", name, "Download or pack it again.") from None


def _data_file(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The one data file of an archive; what systems add beside files (`__MACOSX`, hidden ones) does not count."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    found = []
    for entry in entries:
        inside = PurePosixPath(entry.filename)
        if inside.suffix.lower() in SUFFIXES and not inside.name.startswith(".") and "__MACOSX" not in inside.parts:
            found.append(entry)
    if not found and any(entry.filename in OFFICE_PARTS for entry in entries):
        raise office_refusal(name)
    if not found:
        raise _refusal("There is no data file in the archive.", name, "Give a JSONL, JSON, CSV, TSV or Parquet file.")
    if len(found) > 1:
        names = [PurePosixPath(entry.filename).name[:60] for entry in found[:_SHOWN_NAMES]]
        more = f" and {len(found) - _SHOWN_NAMES:,} more" if len(found) > _SHOWN_NAMES else ""
        what = f"The archive has {len(found):,} data files: {', '.join(names)}{more}."
        raise _refusal(what, name, "Unpack it, and upload those that you mean.")
    if found[0].flag_bits & 1:
        raise _refusal("The archive is locked with a password.", name, "Unpack it, and upload the file in it.")
    return found[0]


def _write(packed: IO[bytes] | gzip.GzipFile, target: Path, name: str, most: int) -> None:
    left = most
    with target.open("wb") as file:
        # What an archive says of its size can be a lie: what comes is counted.
        while block := packed.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                what = f"Unpacked it has more than {format_bytes(most)}."
                raise _refusal(what, name, "Free some space on the disk, or unpack it and upload a part of it.")
            file.write(block)


def office_refusal(name: str) -> DataError:
    """The error for a workbook or a document of an Office program."""
    fix = "Save the table as CSV (in Excel: “CSV UTF-8”) and give that file."
    return DataError("This is a file of Excel, Word or the like.", where=name, fix=fix, code="DATA-TYPE")


def _refusal(what: str, name: str, fix: str) -> DataError:
    return DataError(what, where=name, fix=fix, code="DATA-PACKED")
