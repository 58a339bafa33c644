"""The dataset that comes with the app."""

from __future__ import annotations

import json
from pathlib import Path

import qlora_ui.data


def test_the_builtin_dataset_is_what_it_promises() -> None:
    path = Path(qlora_ui.data.__file__).parent / "builtin" / "plain-pirate.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 120 and len({json.dumps(row) for row in rows}) == 120
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles in (["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"] * 2)
        assert all(len(message["content"].split()) < 60 for message in row["messages"])
        answers = " ".join(message["content"].lower() for message in row["messages"] if message["role"] == "assistant")
        assert any(word in answers for word in ("arr", "matey", "me hearty", "yo ho", "ye ", " be "))
