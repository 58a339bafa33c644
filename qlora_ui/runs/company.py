"""Whether a run fits beside what is on the card already."""

from __future__ import annotations

from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.units import MIB
from qlora_ui.estimate.chat import cache_bytes
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.estimate.workload import DataShape
from qlora_ui.hardware.devices import current_device
from qlora_ui.hardware.gpu import read_gpus
from qlora_ui.hardware.system import read_system
from qlora_ui.models.catalogue import model_facts
from qlora_ui.runs.card import Holder
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

ROOM_BYTES = 256 * MIB
"""Left free for what the neighbour still takes: a second adapter, its step's working memory."""
MORE_TOKENS, SIDES = 4096, 2
"""And for so much more conversation on both sides of a comparison, on a model like the run's."""


def fits_beside(workspace: Workspace, config: RunConfig, holder: Holder, data: DataShape | None = None) -> bool:
    """Whether the estimate of a run, its upper end, fits the memory that is free now, with the holder's model in it.

    Without `data`, what is known of its rows, each is taken to be as long as the settings allow. Only a chat takes turns with a run
    between two steps; evaluations and exports have the card to themselves. False where the model is not known yet: the run then
    waits, or the user frees the card.
    """
    if holder.who != "chat":
        return False
    try:
        facts = model_facts(config.model.id, config.model.revision, workspace)
        device = current_device(workspace, config.launch.device)
    except QloraUiError:
        return False
    if facts is None:
        return False
    needed = estimate_memory(facts, config, device, data).high_bytes
    tokens = min(MORE_TOKENS, facts.context_tokens)
    room = ROOM_BYTES + cache_bytes(facts, tokens, num_rows=SIDES, element_bytes=4 if device.is_cpu else 2)
    if device.is_cpu:
        return needed + room <= read_system().ram_available_bytes
    card = next((gpu for gpu in read_gpus() if gpu.uuid == device.uuid), None)
    # A thread of the app finds the chat's CUDA context there; a process of its own brings one more.
    shared = device.context_bytes if config.launch.where == "thread" else 0
    return card is not None and needed - shared + room <= card.free_bytes
