"""Which run the tabs after a training are about."""

from __future__ import annotations

from qlora_ui.runs.read import RunView
from qlora_ui.ui.service import Service


def chosen_run(service: Service, run_id: str) -> RunView | None:
    """The run that is looked at if it has a result, else the newest that has one; None where there is none."""
    view = service.view(run_id)
    if view is not None and view.has_adapter:
        return view
    newest = next((row for row in service.run_lists.rows() if row.has_adapter), None)
    return service.view(newest.id) if newest is not None else None


def run_to_take(service: Service, run_id: str) -> RunView | None:
    """As `chosen_run`, and also a run that has saved a checkpoint only: where it was chosen, or where no run has a result."""
    view = service.view(run_id)
    unfinished = view if view is not None and view.has_checkpoint else None
    return (unfinished if run_id else None) or chosen_run(service, run_id) or unfinished
