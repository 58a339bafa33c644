"""Text on its way into HTML: everything that came from a user, a file or a model passes through `escape`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# gr.HTML runs its template through Handlebars and a JavaScript template: their opening signs must arrive as plain text.
_TEMPLATE_SIGNS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})

_NAME = re.compile(r"&#96;(.{1,200}?)&#96;")
"""As `escape` leaves backticks."""
_FILE_IN_FRONT = re.compile(r"[^:\n]*\.\w{2,8}: ")
"""`my data.csv: `, with which a problem begins whose place is a file."""
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:(?:s|min|h|d|W|Wh|[KMGT]i?B)\b|%))")


def escape(value: object) -> str:
    """`value` as text that HTML shows as it is, in elements and in quoted attributes."""
    return html.escape(str(value), quote=True).translate(_TEMPLATE_SIGNS)


def prose(text: str) -> str:
    """`escape` of a sentence of ours; names that stand in backticks, as of columns, are set as code."""
    return _NAME.sub(r"<code>\1</code>", escape(text))


def whole_letters(text: str) -> str:
    """`text` without half letters, as a text has at its end that was cut within an emoji: no file and no answer can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def sentence_case(text: str) -> str:
    """`text` with a capital in front, unless it begins with a name: of a file, a folder, an option."""
    first = text.split(" ", 1)[0]
    is_name = first.endswith(":") or _FILE_IN_FRONT.match(text) or any(sign in first.rstrip(";,.") for sign in "./\\_-`0123456789")
    return text if is_name else text[:1].upper() + text[1:]


def with_units(text: str) -> str:
    """`text` whose narrow lines break between words, never between a number and its unit."""
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)


def go_link(text: str, tab: str, focus: str = "") -> str:
    """A link that opens a tab and, with `focus`, brings the control of that DOM id into view."""
    target = f' data-focus="{escape(focus)}"' if focus else ""
    return f'<button type="button" class="q-link" data-go="{escape(tab)}"{target}>{escape(text)}</button>'


def middle_cut(text: str, length: int = 48) -> str:
    """`text` with its middle replaced by an ellipsis where it is longer than `length`; paths stay on one line."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[head + 1 - length :]}"


def end_cut(text: str, length: int) -> str:
    """The begin of `text`, which is read and not told apart by its end, as a path is."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip(' …')}…"


def bullet_list(items: Iterable[str], css_class: str = "q-list") -> str:
    """Ready-made HTML items as a list; empty for no items."""
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="{css_class}">{rows}</ul>' if rows else ""
