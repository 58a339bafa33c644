"""Does the artefact answer as the chat did? Asked in a process of its own, from the files alone.

The child loads what the chat uses (4-bit base and adapter), then the artefact, and compares greedy answers and the logits of
the first answered token.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.progress import IsCancelled, OnProgress, never, silent, stop_if

NUM_PROMPTS = 20
ANSWER_TOKENS = 24
PROMPT_TOKENS = 512
POLL_S = 0.3
READABLE_GGUF = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text")
"""Model types whose GGUF files transformers reads."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How the artefact compares with the chat."""

    num_prompts: int
    num_equal: int
    """Prompts with the same greedy answer, to the last token."""
    mean_shared_share: float
    """Share of an answer's tokens up to the first difference, on average."""
    max_logit_difference: float
    duration_s: float

    def sentence(self) -> str:
        """`Loaded anew, it gave the chat's answer on 19 of 20 prompts.`"""
        return f"Loaded anew, it gave the chat's answer on {self.num_equal} of {self.num_prompts} prompts."


def check_artefact(
    kind: str,
    artefact: Path,
    *,
    base: Path,
    adapter: Path,
    config_path: Path,
    prompts: Sequence[Sequence[int]],
    on_progress: OnProgress = silent,
    is_cancelled: IsCancelled = never,
) -> CheckResult:
    """Load the artefact (`adapter`, `merged` or `gguf`) in a child process and compare it with 4-bit base and adapter on token prompts.

    Raises RunError where the child fails: an artefact that does not load is no export.
    """
    request = {
        "kind": kind,
        "artefact": str(artefact),
        "base": str(base),
        "adapter": str(adapter),
        "config": str(config_path),
        "prompts": [list(ids)[-PROMPT_TOKENS:] for ids in prompts],
    }
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as trouble:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        command = [sys.executable, "-P", "-m", "qlora_ui.engine.exports.check"]
        child = subprocess.Popen(command, env=environment, stdin=asked, stdout=said, stderr=trouble)
        try:
            while child.poll() is None:
                stop_if(is_cancelled, "The check of the export")
                on_progress("Checking that it answers as the chat does", None)
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        said.seek(0)
        trouble.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
        if child.returncode or not lines:
            last = trouble.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            # Without the class of the exception in front: `safetensors.SafetensorError: incomplete metadata`.
            said_last = re.sub(r"^[\w.]+: ", "", last[0])[:300] if last else ""
            raise RunError(
                "What was made could not be loaded again, so it was not kept.",
                why=f"The check said: {said_last}" if said_last else "The checking process ended without a word; memory may be short.",
                fix="Free some memory and try again. If it stays so, the run's adapter is damaged: continue the run.",
                code="export-check",
            )
    return CheckResult(**json.loads(lines[-1]))


def _child(request: dict[str, Any]) -> CheckResult:
    import torch

    from qlora_ui.engine.load import training_device
    from qlora_ui.settings.presets import read_yaml
    from qlora_ui.settings.run_config import RunConfig

    began = time.monotonic()
    config_path = Path(request["config"])
    config = RunConfig.parse(read_yaml(config_path.read_text(encoding="utf-8"), config_path.name))
    device = training_device(config)
    base, adapter, artefact = Path(request["base"]), Path(request["adapter"]), Path(request["artefact"])
    with torch.inference_mode():
        expected = _answers(_load_adapter(base, adapter, config, device), request["prompts"], device)
        gc.collect()
        if request["kind"] == "adapter":
            found = _answers(_load_adapter(base, artefact, config, device), request["prompts"], device)
        elif request["kind"] == "gguf":
            found = _answers(_load_gguf(artefact, config, device), request["prompts"], device)
        else:
            found = _answers(_load_merged(artefact, config, device), request["prompts"], device)
    pairs = list(zip(expected, found, strict=True))
    return CheckResult(
        num_prompts=len(pairs),
        num_equal=sum(left[0] == right[0] for left, right in pairs),
        mean_shared_share=round(sum(_shared(left[0], right[0]) for left, right in pairs) / max(len(pairs), 1), 4),
        max_logit_difference=round(max((float((left[1] - right[1]).abs().max()) for left, right in pairs), default=0.0), 5),
        duration_s=round(time.monotonic() - began, 1),
    )


def _load_adapter(base: Path, adapter: Path, config: Any, device: Any) -> Any:
    from peft import PeftModel

    from qlora_ui.engine.load import load_quantized

    model = PeftModel.from_pretrained(load_quantized(base, config, device), str(adapter)).eval()
    model.config.use_cache = True
    return model


def _load_merged(folder: Path, config: Any, device: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from qlora_ui.engine.load import compute_dtype

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, compute_dtype(config, device)),
        device_map={"": str(device)},
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
    ).eval()


def _load_gguf(folder: Path, config: Any, device: Any) -> Any:
    """The file that llama.cpp's converter wrote a moment ago, unpacked by transformers: another reader than its writer."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from qlora_ui.engine.load import compute_dtype

    return AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=next(folder.glob("*.gguf")).name,
        dtype=getattr(torch, compute_dtype(config, device)),
        quantization_config=GgufConfig(dequantize=True),
        device_map={"": str(device)},
        trust_remote_code=False,
        local_files_only=True,
    ).eval()


def _answers(model: Any, prompts: Sequence[Sequence[int]], device: Any) -> list[tuple[list[int], Any]]:
    """Greedy tokens, and the logits of the first of them, for each prompt."""
    import torch

    answers = []
    for prompt in prompts:
        ids_BT = torch.tensor([list(prompt)], device=device)
        out = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append((out.sequences[0, ids_BT.shape[1] :].tolist(), out.logits[0][0].float().cpu()))
    return answers


def _shared(left: Sequence[int], right: Sequence[int]) -> float:
    same = next((at for at, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), min(len(left), len(right)))
    return same / max(len(left), len(right), 1)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_child(json.load(sys.stdin)))))
    except QloraUiError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
