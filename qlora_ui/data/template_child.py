"""The child that tries a chat template: the same sandbox that renders it later, within limits."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qlora_ui.base.units import MIB
from qlora_ui.data.limits import confine

_TRIAL_BYTES = 512 * MIB
_TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}}
_TRIALS: tuple[tuple[list[dict[str, Any]], list[Any] | None], ...] = (
    ([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], None),
    ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 8, None),
    ([{"role": "user", "content": "q"}], [_TOOL]),
)


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}`, which some templates put around answers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
    return environment


def main() -> None:
    """Try the template on standard input; say `{"code", "what"}`, an empty code for a good one."""
    job = json.loads(sys.stdin.read())
    confine(job["cpu_s"], address_bytes=_TRIAL_BYTES)
    code, what = try_template(job["template"])
    print(json.dumps({"code": code, "what": what}), flush=True)


def try_template(source: str) -> tuple[str, str]:
    """Code and words of what is wrong with a template, both empty for a good one; to be called in a confined process."""
    try:
        template = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        return "TPL-SYNTAX", f"The chat template has an error in line {error.lineno}: {error.message}"
    except (MemoryError, RecursionError, OverflowError):
        return "TPL-LIMIT", "The chat template fills the memory."
    except ValueError as error:
        return "TPL-SYNTAX", f"The chat template has an error: {str(error)[:120]}"
    for turns, tools in _TRIALS:
        for prompt in (False, True):
            try:
                text = template.render(
                    messages=turns, tools=tools, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", documents=None
                )
            except SecurityError as error:
                return "TPL-UNSAFE", f"The chat template reaches for what it must not: {str(error)[:200]}"
            except (MemoryError, RecursionError, OverflowError):
                return "TPL-LIMIT", "The chat template fills the memory."
            except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, IndexError):
                continue  # It refuses this conversation, as strict templates do; rows are told apart later.
            if len(text) > 1_000_000:
                return "TPL-LIMIT", "The chat template writes over a million letters for three turns."
    return "", ""
