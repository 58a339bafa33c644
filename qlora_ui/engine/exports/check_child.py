"""The process in which an export is tried: loads what the chat uses (4-bit base and adapter), then the artefact, and compares.

A request as JSON on stdin, a CheckResult as JSON on stdout.
Shapes: B prompts of a batch, T tokens, V words of the vocabulary.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from qlora_ui.base.errors import QloraUiError
from qlora_ui.engine.chat_model import unpack_for_cpu
from qlora_ui.engine.exports.check import NO_CHAT, NOT_READ, SHORT_OF_MEMORY, CheckResult
from qlora_ui.engine.exports.stops import stop_ids
from qlora_ui.engine.failures import is_out_of_memory
from qlora_ui.engine.load import compute_dtype, load_quantized, training_device
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.settings.migrate import as_then
from qlora_ui.settings.presets import read_yaml
from qlora_ui.settings.run_config import RunConfig

ANSWER_TOKENS = 24
BATCH = 5
"""Prompts answered at once: a token of a 4-bit model costs a CPU the same for one row and for five."""


class NoChat(Exception):
    """The chat's own model failed, which the artefact has no part in; its cause says how."""


class NotRead(Exception):
    """transformers made no model of a GGUF file that is whole, as far as its own library can tell; its cause says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer."""

    tokens: list[int]
    logits_V: torch.Tensor
    """Of its first token; fp32 on the CPU."""


def compare(request: dict[str, Any]) -> CheckResult:
    """Answers of the chat's model and of the artefact, compared."""
    began = time.monotonic()
    config_path = Path(request["config"])
    config = RunConfig.parse(as_then(read_yaml(config_path.read_text(encoding="utf-8"), config_path.name)))
    device = training_device(config)
    base, adapter, artefact = Path(request["base"]), Path(request["adapter"]), Path(request["artefact"])
    prompts, kind, reader = request["prompts"], request["kind"], "transformers"
    with torch.inference_mode():
        expected, stops = _chat_answers(base, adapter, config, device, prompts)
        _collect()
        if kind == "adapter":
            found = _answers(_load_adapter(base, artefact, config, device), prompts, device, stops)
        elif kind == "merged":
            # Its own end tokens: where its files name too few, it talks on behind the chat's answer.
            merged = _load(artefact, config, device)
            found = _answers(merged, prompts, device, _stop_ids(merged))
        elif find_spec("llama_cpp") is not None:
            found, reader = _llama_cpp_answers(_gguf(artefact), prompts), "llama.cpp"
        else:
            found = _answers(_load_gguf(artefact, base, config, device), prompts, device, stops)
    differences = [_difference(left.logits_V, right.logits_V) for left, right in zip(expected, found, strict=True)]
    pairs = [(left.tokens, right.tokens) for left, right in zip(expected, found, strict=True)]
    return CheckResult(
        num_prompts=len(pairs),
        num_equal=sum(left == right for left, right in pairs),
        mean_shared_share=round(sum(_shared(left, right) for left, right in pairs) / max(len(pairs), 1), 4),
        mean_logit_difference=round(sum(float(difference.mean()) for difference in differences) / max(len(pairs), 1), 5),
        max_logit_difference=round(max((float(difference.max()) for difference in differences), default=0.0), 5),
        reader=reader,
        duration_s=round(time.monotonic() - began, 1),
    )


def _chat_answers(
    base: Path, adapter: Path, config: RunConfig, device: torch.device, prompts: Sequence[Sequence[int]]
) -> tuple[list[Answer], list[int]]:
    """What the chat's model answers, and its end tokens; raises NoChat where it cannot be asked for another reason than memory."""
    try:
        stops = stop_ids(base, load_tokenizer(base, config.model.template))
        model = _load_adapter(base, adapter, config, device)
        return _answers(model, prompts, device, stops), stops
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NoChat from error


def _load_adapter(base: Path, adapter: Path, config: RunConfig, device: torch.device) -> Any:
    from peft import PeftModel

    quantized = load_quantized(base, config, device)
    if device.type == "cpu":
        unpack_for_cpu(quantized)
    model = PeftModel.from_pretrained(quantized, str(adapter)).eval()
    model.config.use_cache = True
    return model


def _load(folder: Path, chosen: RunConfig, device: torch.device, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, compute_dtype(chosen, device)),
        device_map={"": str(device)},
        trust_remote_code=False,
        local_files_only=True,
        **({"use_safetensors": True} | more),
    ).eval()


def _load_gguf(folder: Path, base: Path, config: RunConfig, device: torch.device) -> Any:
    """The file that llama.cpp's converter wrote a moment ago, unpacked by transformers: another reader than its writer.

    Weights are the file's, the settings the base's: of those in the file, transformers 5.24 leaves out what scales and shares positions
    (Llama 3.1, Phi-4 mini), biases, head sizes and Gemma's scale of the scores, and then reads another model. Raises NotRead.
    """
    from gguf import GGUFReader
    from transformers import AutoConfig, GgufConfig

    file = _gguf(folder)
    names = {tensor.name for tensor in GGUFReader(file).tensors}
    own = AutoConfig.from_pretrained(base, local_files_only=True).to_dict()
    # Mistral is Llama to GGUF; the window that it has besides is longer than any prompt here.
    kind = "llama" if own["model_type"] == "mistral" else own["model_type"]
    settings = AutoConfig.for_model(**{**own, "model_type": kind, "tie_word_embeddings": "output.weight" not in names})
    unpacked: dict[str, Any] = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "use_safetensors": None}
    try:
        return _load(folder, config, device, config=settings, **unpacked)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NotRead from error


def _gguf(folder: Path) -> Path:
    return next(folder.glob("*.gguf"))


def _answers(model: Any, prompts: Sequence[Sequence[int]], device: torch.device, stops: Collection[int]) -> list[Answer]:
    answers = []
    pad = min(stops, default=0)
    for at in range(0, len(prompts), BATCH):
        batch = prompts[at : at + BATCH]
        longest = max(map(len, batch))
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in batch], device=device)
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=device)
        out = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=list(stops) or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        said = out.sequences[:, longest:].tolist()
        answers += [Answer(_until_stop(tokens, stops), out.logits[0][row].float().cpu()) for row, tokens in enumerate(said)]
    return answers


def _llama_cpp_answers(file: Path, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Greedy answers of llama.cpp itself, which an extra (requirements-gguf.txt) brings; on the CPU, up to where it would end them."""
    import llama_cpp
    import numpy as np

    longest = max(map(len, prompts)) + ANSWER_TOKENS
    model = llama_cpp.Llama(str(file), n_ctx=longest, n_batch=longest, n_gpu_layers=0, verbose=False)

    def logits_after(tokens: Sequence[int]) -> Any:
        model.eval(list(tokens))
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), shape=(model.n_vocab(),))

    vocab = llama_cpp.llama_model_get_vocab(model.model)
    stops = {token for token in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)}
    return [_greedy(prompt, stops, logits_after, model.reset) for prompt in prompts]


def _greedy(
    prompt: Sequence[int], stops: Collection[int], logits_after: Callable[[Sequence[int]], Any], reset: Callable[[], None]
) -> Answer:
    reset()
    logits_V = logits_after(prompt)
    first_V = torch.tensor(logits_V)
    tokens = [int(logits_V.argmax())]
    while tokens[-1] not in stops and len(tokens) < ANSWER_TOKENS:
        tokens.append(int(logits_after(tokens[-1:]).argmax()))
    return Answer(tokens, first_V)


def _stop_ids(model: Any) -> list[int]:
    """The tokens that end `generate`, in order."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else sorted(found)


def _until_stop(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    """The answer up to its end token; behind it stands padding."""
    end = next((at for at, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return list(tokens[: end + 1])


def _difference(left_V: torch.Tensor, right_V: torch.Tensor) -> torch.Tensor:
    """Absolute, over the words that both have: a converter may leave out what only fills up the vocabulary."""
    size = min(len(left_V), len(right_V))
    return (left_V[:size] - right_V[:size]).abs()


def _shared(left: Sequence[int], right: Sequence[int]) -> float:
    same = next((at for at, (one, two) in enumerate(zip(left, right, strict=False)) if one != two), min(len(left), len(right)))
    return same / max(len(left), len(right), 1)


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> int:
    """Answer the request on stdin; the status says whether it was memory that ended it."""
    try:
        print(json.dumps(asdict(compare(json.load(sys.stdin)))))
    except (NoChat, NotRead) as error:
        print(error.__cause__, file=sys.stderr)
        return NO_CHAT if isinstance(error, NoChat) else NOT_READ
    except QloraUiError as error:
        print(error, file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return SHORT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
