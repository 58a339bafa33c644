"""One object per run: RunConfig, frozen, made of sections. Only entry points see it whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_ui.base.errors import Problem, SettingsError
from qlora_ui.settings.consistency import contradictions
from qlora_ui.settings.migrate import VERSION, migrate
from qlora_ui.settings.option import Option, Section, options_of
from qlora_ui.settings.sections import (
    DataSection,
    EvalSection,
    LaunchSection,
    LoraSection,
    ModelSection,
    OutputSection,
    QuantSection,
    TrainSection,
)
from qlora_ui.settings.source import LABELS
from qlora_ui.settings.yaml_text import dump_yaml


class RunConfig(BaseModel):
    """Everything that decides what a run does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSection = Field(default_factory=ModelSection)
    quant: QuantSection = Field(default_factory=QuantSection)
    lora: LoraSection = Field(default_factory=LoraSection)
    data: DataSection = Field(default_factory=DataSection)
    train: TrainSection = Field(default_factory=TrainSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    output: OutputSection = Field(default_factory=OutputSection)
    launch: LaunchSection = Field(default_factory=LaunchSection)

    @classmethod
    def parse(cls, nested: Mapping[str, Any]) -> Self:
        """A checked RunConfig from nested settings.

        Raises SettingsError with every wrong, unknown or contradictory setting at once.
        """
        try:
            config = cls.model_validate(migrate(nested))
        except ValidationError as error:
            raise SettingsError(problems=[_in_words(item) for item in error.errors()]) from None
        if problems := contradictions(config):
            raise SettingsError(problems=problems)
        return config

    def changed(self, values: Mapping[str, Any]) -> RunConfig:
        """A copy with options by their path replaced (`{"lora.rank": 8}`), checked as in `parse`."""
        nested = self.model_dump()
        unknown = []
        for path, value in values.items():
            if path not in option_by_path():
                unknown.append(Problem(path, "there is no such option", fix=_did_you_mean(path), code="unknown-option"))
                continue
            section, name = path.split(".")
            nested[section][name] = _read_flag(option_by_path()[path], value)
        try:
            config = type(self).parse(nested)
        except SettingsError as error:
            raise SettingsError(problems=[*unknown, *error.problems]) from None
        if unknown:
            raise SettingsError(problems=unknown)
        return config

    def get(self, path: str) -> Any:
        """The value of an option by its path."""
        section, name = path.split(".")
        return getattr(getattr(self, section), name)

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Path to (this value, the other's) for every option that differs."""
        return {path: (self.get(path), other.get(path)) for path in option_by_path() if self.get(path) != other.get(path)}

    def to_nested(self, *, only_changed: bool = False) -> dict[str, Any]:
        """The settings as plain nested data; `only_changed` leaves out what has its default."""
        nested = self.model_dump(mode="json")
        if not only_changed:
            return nested
        return {
            section: {name: nested[section][name] for name in names}
            for section, names in in_sections(self.differences(RunConfig())).items()
        }

    def to_yaml(self, *, only_changed: bool = False) -> str:
        """The settings as YAML, with the version of their layout."""
        document = {"version": VERSION, **self.to_nested(only_changed=only_changed)}
        return dump_yaml(document)

    @property
    def effective_batch(self) -> int:
        """Conversations behind one correction of the weights, over all cards and machines."""
        return self.train.batch_size * self.train.accumulation * self.launch.num_processes * self.launch.num_machines

    @property
    def alpha(self) -> int:
        """LoRA alpha: the chosen one, else twice the rank."""
        return self.lora.alpha if self.lora.alpha is not None else 2 * self.lora.rank


_NAMES_OF_FILES = ("data.sources", "model.id", "lora.start_from")


@cache
def option_by_path() -> Mapping[str, Option]:
    """Every option by its path, in the order of the declarations."""
    return {option.path: option for option in _declared()}


def in_sections(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by their path (`{"lora.rank": 8}`) as nested settings."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        nested.setdefault(section, {})[name] = value
    return nested


def label_of(path: str) -> str:
    """The name of an option as the page has it; the path itself where there is no such option."""
    option = option_by_path().get(path)
    return option.meta.label if option else path


def _declared() -> Iterable[Option]:
    for name, info in RunConfig.model_fields.items():
        section = info.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        yield from options_of(name, section)


def _read_flag(option: Option, value: Any) -> Any:
    """A flag's text as a value: an empty text or `none` leaves an optional option to the job."""
    if isinstance(value, str) and option.is_optional and value.strip().lower() in ("", "none", "null", "auto"):
        return None
    return value


def _did_you_mean(path: str) -> str:
    import difflib

    near = difflib.get_close_matches(path, option_by_path(), n=1, cutoff=0.5)
    if not near:
        near = [known for known in option_by_path() if known.split(".")[1] == path.rsplit(".", maxsplit=1)[-1]][:1]
    return f"Did you mean {near[0]}?" if near else "“python app.py options” lists all of them."


def _in_words(error: Any) -> Problem:
    """A pydantic error as a problem with the option's path, in a sentence that a non-coder reads."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location[:2])
    option = option_by_path().get(path)
    where = ".".join(location)
    if error["type"] == "extra_forbidden":
        return Problem(where, "there is no such option", fix=_did_you_mean(path), code="unknown-option")
    if option is None:
        return Problem(where, error["msg"], code="setting")
    # A source has parts of its own; its Weight is wrong, not “Datasets”.
    label = LABELS.get(location[-1], option.meta.label) if path == "data.sources" and len(location) > 3 else option.meta.label
    what = f"{label} cannot be {_shown(error.get('input'))}"
    if error["type"] == "string_unicode":
        # A terminal passes on the bytes of a file's name whatever their encoding.
        fix = "Rename the file or folder, then give its new name" if path in _NAMES_OF_FILES else "Write it in UTF-8"
        return Problem(where, what, "Its letters are not in UTF-8", fix, "setting")
    return Problem(where, what, _reason(option, error), _bounds(option), "setting")


def _shown(value: Any) -> str:
    text = str(value)
    return f"“{text[:60]}…”" if len(text) > 60 else f"“{text}”"


def _reason(option: Option, error: Any) -> str:
    message: str = error["msg"]
    return "" if option.minimum is not None or option.literal_values else message.removeprefix("Value error, ")


def _bounds(option: Option) -> str:
    if option.literal_values:
        return "Choose one of " + ", ".join(str(value) for value in option.literal_values)
    kind = "a whole number" if option.inner_type is int else "a number"
    low = f"{'above' if option.exclusive_minimum else 'from'} {_number(option.minimum)}" if option.minimum is not None else ""
    joint = "to" if low.startswith("from") else "and at most" if low else "of at most"
    high = f"{joint} {_number(option.maximum)}" if option.maximum is not None else ""
    return f"Give {' '.join(part for part in (kind, low, high) if part)}" if low or high else ""


def _number(value: float) -> str:
    """A bound as it is said: `131,072`, `0.1`."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
