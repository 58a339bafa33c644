"""When the page offers a precise check of the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ui.estimate.check import CheckedMemory
from qlora_ui.estimate.workload import DataShape
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.ui.checks import Checks
from qlora_ui.ui.draft import make_draft
from qlora_ui.ui.service import Service
from qlora_ui.ui.views.checked import checked_html, has_check, wants_check


@pytest.mark.parametrize(("share", "is_wanted"), [(0.5, False), (0.95, True), (1.1, True), (2.7, False)])
def test_only_where_a_more_exact_number_could_change_the_verdict(workspace: Workspace, share: float, is_wanted: bool) -> None:
    service = Service(workspace)
    values = {path: RunConfig().get(path) for path in option_by_path()}
    draft = make_draft(service, values, "", service.device("NVIDIA GeForce RTX 3060"))
    assert draft.memory is not None
    memory = replace(draft.memory, doubts=())
    device = replace(draft.device, free_bytes=round(memory.total_bytes / share))
    draft = replace(draft, memory=memory, device=device)
    assert wants_check(draft) is is_wanted
    assert ("It is close" in checked_html(draft, None)) is is_wanted
    assert not wants_check(replace(draft, device=service.device(""))) and not has_check(replace(draft, device=service.device("")))


def test_a_check_that_was_asked_for_outlives_the_counting_of_tokens(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(workspace)
    values = {path: RunConfig().get(path) for path in option_by_path()}
    draft = make_draft(service, values, "", service.device("NVIDIA GeForce RTX 3060"))
    longest: list[int | None] = []
    found = CheckedMemory(1, 1, 1)
    monkeypatch.setattr(
        "qlora_ui.ui.checks.check_memory", lambda facts, config, device, shape, *_: longest.append(shape.longest_tokens) or found
    )
    checks = Checks(lambda: None)
    draft = replace(draft, shape=DataShape(num_rows=8))
    assert checks.of(draft) is None and checks.begin(draft) is not None
    for tokens, is_asked in ((90, True), (120, False)):
        counted = checks.of(replace(draft, shape=DataShape(num_rows=8, longest_tokens=tokens)))
        assert (counted is not None) is is_asked
    pending = checks.of(replace(draft, shape=DataShape(num_rows=8, longest_tokens=90)))
    assert pending is not None and pending.done.wait(5) and pending.answer is found and longest[-1] == 90
