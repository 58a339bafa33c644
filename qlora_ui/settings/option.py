"""One option, one declaration: the line that makes the control, the flag, the YAML key, the docs row and the upstream argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Tier = Literal["basic", "advanced"]
Affects = Literal["memory", "time", "quality"]


@dataclass(frozen=True, slots=True)
class OptionMeta:
    """What an option's line says beside its type, default and bounds."""

    label: str
    term: str
    help: str
    tier: Tier
    to: str
    source: str
    affects: tuple[Affects, ...]
    choices: Mapping[str, str] = field(default_factory=dict)


def option(
    default: Any,
    help: str,
    *,
    label: str,
    term: str = "",
    tier: Tier = "advanced",
    to: str = "",
    source: str = "",
    affects: tuple[Affects, ...] = (),
    choices: Mapping[str, str] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
) -> Any:
    """Declare an option of a Section.

    `label` is a non-coder's word and `term` the field's; `help` is one honest sentence. `to` names the upstream argument
    (`lora.r`, `sft.learning_rate`, `bnb.bnb_4bit_quant_type`), checked against the installed class by a test. `choices`
    gives each value of a Literal its words. `affects` lists what the estimate must move when the option does.
    """
    meta = OptionMeta(label, term, help, tier, to, source, affects, dict(choices or {}))
    return Field(default, description=help, ge=ge, gt=gt, le=le, json_schema_extra={"option": meta})  # type: ignore[dict-item]


class Section(BaseModel):
    """A group of options; frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, ser_json_inf_nan="constants")


@dataclass(frozen=True, slots=True)
class Option:
    """An option as everybody but pydantic sees it."""

    section: str
    name: str
    type: Any
    default: Any
    meta: OptionMeta
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool

    @property
    def path(self) -> str:
        """The YAML key and, with two dashes, the flag: `lora.rank`."""
        return f"{self.section}.{self.name}"

    @property
    def dom_id(self) -> str:
        """The id by which the page and its tests find the control: `lora-rank`."""
        return self.path.replace(".", "-").replace("_", "-")

    @property
    def inner_type(self) -> Any:
        """The type without `None`."""
        if get_origin(self.type) in (Union, UnionType):
            rest = [arg for arg in get_args(self.type) if arg is not NoneType]
            return rest[0] if len(rest) == 1 else self.type
        return self.type

    @property
    def is_optional(self) -> bool:
        """Whether None is a value (the job decides)."""
        return get_origin(self.type) in (Union, UnionType) and NoneType in get_args(self.type)

    @property
    def literal_values(self) -> tuple[Any, ...]:
        """The values of a choice; empty for any other option."""
        return get_args(self.inner_type) if get_origin(self.inner_type) is Literal else ()

    def as_dict(self) -> dict[str, Any]:
        """The option as `options --json` prints it."""
        default = self.default
        return {
            "path": self.path,
            "flag": f"--{self.path}",
            "label": self.meta.label,
            "term": self.meta.term,
            "help": self.meta.help,
            "tier": self.meta.tier,
            "default": [item.model_dump() if isinstance(item, BaseModel) else item for item in default]
            if isinstance(default, tuple)
            else default,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "choices": list(self.literal_values),
            "upstream": self.meta.to,
            "source": self.meta.source,
            "affects": list(self.meta.affects),
        }


def options_of(section_name: str, section: type[Section]) -> Iterator[Option]:
    """The options that a section declares, in the order of their lines."""
    for name, info in section.model_fields.items():
        yield _read(section_name, name, info)


def _read(section_name: str, name: str, info: FieldInfo) -> Option:
    extra = info.json_schema_extra
    meta = extra.get("option") if isinstance(extra, dict) else None
    if not isinstance(meta, OptionMeta):
        raise TypeError(f"{section_name}.{name} is not declared with option(...)")
    bounds = {key: getattr(rule, key) for rule in info.metadata for key in ("ge", "gt", "le") if getattr(rule, key, None) is not None}
    return Option(
        section=section_name,
        name=name,
        type=info.annotation,
        default=info.get_default(call_default_factory=True),
        meta=meta,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le"),
        exclusive_minimum="gt" in bounds,
    )
