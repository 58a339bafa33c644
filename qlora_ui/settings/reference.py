"""The options as a page of documentation: `python -m qlora_ui.settings.reference > docs/options.md`."""

from __future__ import annotations

import sys

from qlora_ui.settings.run_config import RunConfig, option_by_path

LISTS = (
    "As flags, several words have commas between them (--lora.targets q_proj,v_proj), questions stand on a line each, and several datasets "
    'and the column mapping are JSON: --data.sources \'["a.jsonl", "b.jsonl"]\', --data.mapping \'{"user": "q", "assistant": "a"}\'.'
)
"""How settings that hold more than one thing are given on the command line."""


def render_reference() -> str:
    """Every option as Markdown, a heading a section, a row an option."""
    lines = [
        "# Settings",
        "",
        "Each is a control on the page, a flag (`--lora.rank 8`) and a key in YAML. Generated from the declarations.",
        "",
        LISTS,
    ]
    section = ""
    for option in option_by_path().values():
        if option.section != section:
            section = option.section
            about = RunConfig.model_fields[section].annotation.__doc__
            lines += [
                "",
                f"## {section}",
                "",
                f"{about}",
                "",
                "| setting | default | values | what it does | upstream |",
                "| --- | --- | --- | --- | --- |",
            ]
        row = option.as_dict()
        values = ", ".join(map(str, row["choices"])) or (
            f"{row['minimum']:,.10g} to {row['maximum']:,.10g}" if row["minimum"] is not None else ""
        )
        name = f"**{option.meta.label}**{f' ({option.meta.term})' if option.meta.term else ''}"
        source = f" ({option.meta.source})" if option.meta.source else ""
        cells = [
            f'<a id="{option.dom_id}"></a>`{option.path}`',
            f"`{_short(row['default'])}`",
            values,
            f"{name}. {option.meta.help}{source}",
            f"`{option.meta.to}`" if option.meta.to else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _short(default: object) -> str:
    if default is None:
        return "automatic"
    if isinstance(default, list | tuple):
        return ", ".join(item["id"] if isinstance(item, dict) else str(item) for item in default) or "none"
    return str(default) if default not in ("", {}) else "none"


if __name__ == "__main__":
    sys.stdout.write(render_reference())
