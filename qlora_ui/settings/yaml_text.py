"""Settings as YAML text that reads back as what it was."""

from __future__ import annotations

import re
from typing import Any

import yaml

NUMBER_WITH_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
"""`2e-4`, a text to PyYAML and a number to people: our loaders read it as one."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text which our loaders would take for a number, such as a run named 2e-4."""


_Dumper.add_implicit_resolver(*NUMBER_WITH_EXPONENT)


def dump_yaml(document: dict[str, Any]) -> str:
    """Nested plain data as YAML, in its own order."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
