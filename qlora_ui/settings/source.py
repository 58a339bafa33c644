"""One dataset of a run: where it is, which rows of it, how much it weighs in a mix."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_SLICE = re.compile(r"^(?:(?:first )?(?P<first>\d+)|(?P<start>\d+)-(?P<stop>\d+)|(?P<share>\d+(?:\.\d+)?) ?%)$")

LABELS = {"id": "The name of a dataset", "config": "Subset", "split": "Split", "weight": "Weight", "rows": "Rows"}
"""How messages and the page name the parts of a source."""


class DataSource(BaseModel):
    """A dataset as the user named it; a bare text is its id."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    id: str = Field(min_length=1)
    """`builtin:NAME`, a file's path, or `hub:OWNER/NAME`; a bare `OWNER/NAME` that is no file is taken for the Hub."""
    config: str | None = None
    split: str = "train"
    weight: float = Field(1.0, gt=0, le=1000)
    """Share in a mix: 2 means twice the rows per pass, 0.5 half of them."""
    rows: str = ""
    """Slice of the rows: empty for all, `first 500` or `500`, `100-200` (both included, counted from 1) or `20 %`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_text_is_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @field_validator("rows", mode="before")
    @classmethod
    def _number_is_text(cls, value: Any) -> Any:
        # YAML reads `rows: 500` as a number.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("rows")
    @classmethod
    def _slice_reads(cls, value: str) -> str:
        if value and not _SLICE.match(value):
            raise ValueError("write “first 500”, “100-200” or “20 %”, or leave it empty for all rows")
        return value

    def row_range(self, num_rows: int) -> range:
        """The rows that the slice picks out of `num_rows`, counted from 0."""
        match = _SLICE.match(self.rows)
        if not match:
            return range(num_rows)
        if match["first"]:
            return range(min(int(match["first"]), num_rows))
        if match["share"]:
            return range(round(num_rows * min(float(match["share"]), 100) / 100))
        return range(min(max(int(match["start"]) - 1, 0), num_rows), min(int(match["stop"]), num_rows))
