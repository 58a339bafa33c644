"""The precise check: the real model code, adapter, recomputation and loss on tensors without data, every allocation written down.

A few layers of each kind are run and the middle one's record repeated to the model's depth, then torch's allocator is replayed over it: a
70-layer model takes as long as a 3-layer one. Runs as a process of its own (`python -m qlora_ui.engine.simulate`, a request as JSON
on stdin, the answer on stdout) since it replaces a few functions of the libraries by their memory behaviour on a card:

* 4-bit layers allocate what bitsandbytes' CUDA operations allocate, not what its CPU ones do;
* attention saves and allocates what torch's flash and memory-efficient kernels do;
* TRL's and our own Triton kernels work in place.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch

if __name__ == "__main__":
    # bitsandbytes compiles a few functions at its import, which brings in all of torch's compiler: a third of the imports, for nothing.
    torch.compile = lambda model=None, **named: model if model is not None else lambda function: function
    # Half a million objects come in with the imports; looking through them for garbage again and again takes a tenth of their time.
    gc.disable()

from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_ui.engine.fast import attention as packed_attention
from qlora_ui.engine.load import keep_layers
from qlora_ui.engine.simulated_card import SimulatedLinear4bit, card_attention, card_kernels
from qlora_ui.estimate.trace import Segment, Trace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.upstream import lora_arguments

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Writes down when storages appear and vanish, under the segment that is current."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self._known: dict[int, int] = {}

    def track(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._note(tensor.untyped_storage())

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        number = self._known[key] = self.trace.allocate(storage.nbytes())

        def vanished() -> None:
            if self._known.pop(key, None) is not None:
                self.trace.free(number)

        weakref.finalize(storage, vanished)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return result


def build(request: dict[str, Any], config: RunConfig, num_layers: int) -> tuple[Any, Any]:
    """(PEFT model, base model) with that many layers, on fake tensors, in the state in which training starts."""
    dtype = DTYPES[request["dtype"]]
    model_config = AutoConfig.for_model(**{**request["model"], "num_hidden_layers": num_layers})
    torch.set_default_dtype(dtype)
    base = AutoModelForCausalLM.from_config(model_config, dtype=dtype, attn_implementation=_attention_name(request))
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            base.set_submodule(name, SimulatedLinear4bit(module, config.quant.double_quant, dtype))
    torch.set_default_dtype(torch.float32)
    base.is_loaded_in_4bit = True
    base.config.use_cache = False
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    for buffer in base.buffers():
        # A fake tensor made of one number (Gemma's scale of the embedding) keeps the real one with it, which cannot be copied here.
        buffer.constant = None
    with _modules_that_stay():
        model = get_peft_model(base, LoraConfig(**lora_arguments(config)))
    _set_adapter_dtype(model, torch.bfloat16 if request["adapter_bytes"] == 2 else torch.float32)
    model.train()
    if config.train.checkpointing != "none" and not request["is_fast"]:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
        if config.train.checkpointing == "partly":
            keep_layers(model, request["kept_layers"])
    return model, base


def _set_adapter_dtype(model: Any, dtype: torch.dtype) -> None:
    """New parameters instead of new `.data`: a tensor without data would go on showing the storage that it had first."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, dtype=dtype)))


def _attention_name(request: dict[str, Any]) -> str:
    """As the engine chooses it: packed rows bring their own attention."""
    if request["is_packed"]:
        return packed_attention.register()
    return "eager" if request["is_eager"] else "sdpa"


@contextlib.contextmanager
def _modules_that_stay() -> Iterator[None]:
    """`Module.to` swaps tensors, which tensors without data do not survive; PEFT only calls it for device and dtype."""
    original = nn.Module.to
    nn.Module.to = lambda self, *arguments, **named: self
    try:
        yield
    finally:
        nn.Module.to = original


def mark_layers(base: Any, trace: Trace) -> Callable[[str], None]:
    """Let the trace know in which layer's forward or backward pass it is; the returned function begins a pass."""
    layers = base.model.layers
    state = {"pass": "", "forward": False}

    def before(index: int) -> Callable[..., None]:
        def hook(module: Any, *_: Any) -> None:
            if state["forward"]:
                trace.segment = Segment(str(state["pass"]), "forward", index)

        return hook

    def after(index: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if not state["forward"]:
                return
            tensor = output[0] if isinstance(output, tuple) else output
            if tensor.requires_grad:
                name = state["pass"]

                def arrived(gradient: torch.Tensor) -> None:
                    trace.segment = Segment(str(name), "backward", index)

                tensor.register_hook(arrived)

        return hook

    def end(module: Any, inputs: Any) -> None:
        # Not at the end of the last layer: what went into it is given up after that, as with every other layer.
        if state["forward"]:
            trace.segment = Segment(str(state["pass"]), "loss", None)
            state["forward"] = False

    base.model.norm.register_forward_pre_hook(end)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(before(index))
        layer.register_forward_hook(after(index))

    def begin(name: str) -> None:
        state["pass"], state["forward"] = name, True
        trace.segment = Segment(name, "start", None)

    return begin


def plain_step(base: Any, request: dict[str, Any], rows: int, row_tokens: int, *, is_eval: bool) -> None:
    """Forward, TRL's fused loss and backward of one batch, as SFTTrainer runs them."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    ids = torch.zeros(rows, row_tokens, dtype=torch.int64)
    labels = torch.zeros(rows, row_tokens, dtype=torch.int64)
    dtype = DTYPES[request["dtype"]]
    packed = request["is_packed"]
    if packed:
        ids, labels = ids.view(1, -1), labels.view(1, -1)
    mask = torch.ones(rows, row_tokens, dtype=torch.int64) if rows > 1 and not packed else None
    cast = torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext()
    softcap = getattr(base.config, "final_logit_softcapping", None)
    with cast, torch.set_grad_enabled(not is_eval):
        decoder = base.model
        masks = _causal(mask, row_tokens, rows, request, base.config)
        documents = _documents(rows, row_tokens) if packed else {}
        hidden = decoder(input_ids=ids, attention_mask=masks, use_cache=False, **documents).last_hidden_state
        count = ids.numel() - ids.shape[0] if request["is_cpu"] else max(1, round((ids.numel() - ids.shape[0]) * request["trained_share"]))
        if request["is_cpu"]:
            chosen = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        else:
            row, place = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
            chosen = hidden[:, :-1][row, place]
        head = base.get_output_embeddings()
        outputs = ChunkedLogProbFunction.apply(
            chosen, head.weight, None, torch.zeros(count, dtype=torch.int64), 1.0, 32768, softcap, 1.0, ("log_probs", "entropy", "is_top1")
        )
        loss = -outputs[0].sum()
    if not is_eval:
        loss.backward()


def _causal(mask: torch.Tensor | None, row_tokens: int, rows: int, request: dict[str, Any], config: Any) -> Any:
    """The masks that transformers makes of padding: built here, since its own code looks at the values."""
    if mask is None:
        return None
    dtype = DTYPES[request["dtype"]] if request["is_eager"] else torch.bool
    shape = (rows, 1, row_tokens, row_tokens)
    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) < 2:
        return torch.ones(shape, dtype=dtype)
    # Models that mix windowed layers with others have one for each kind.
    return {kind: torch.ones(shape, dtype=dtype) for kind in sorted(kinds)}


def _documents(rows: int, row_tokens: int) -> dict[str, Any]:
    """What the collator of packed rows says of them."""
    bounds = torch.zeros(rows + 1, dtype=torch.int32)
    return {
        "position_ids": torch.zeros(1, rows * row_tokens, dtype=torch.int64),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": row_tokens,
        "max_length_k": row_tokens,
    }


def fast_step(model: Any, request: dict[str, Any], trace: Trace) -> Callable[[], None]:
    """The fused micro-step on its static buffers."""
    import threading

    from qlora_ui.engine.fast.apply import fuse
    from qlora_ui.engine.fast.micro_step import Batch, MicroStep

    state = fuse(model, dropout=request["dropout"], num_kept_layers=request["kept_layers"])
    trace.segment = Segment("setup", "gradients", None)
    micro = MicroStep(model, state, run_seed=0, capture=False, capture_lock=threading.Lock(), on_note=lambda text: None)
    micro.gradients.attach()
    tokens = request["rows"] * request["row_tokens"]
    batch = Batch(
        torch.zeros(tokens, dtype=torch.int64),
        torch.zeros(tokens, dtype=torch.int64),
        torch.zeros(tokens, dtype=torch.int64),
        torch.zeros(request["rows"] + 1, dtype=torch.int32),
        request["row_tokens"],
        torch.zeros(tokens - request["rows"], dtype=torch.int64),
    )
    return lambda: micro._compute(batch)


def simulate(request: dict[str, Any]) -> Trace:
    """The record of a run's start, two micro-batches and one evaluation batch, at the reduced depth that the request gives."""
    config = RunConfig.parse(request["config"])
    trace = Trace()
    trace.segment = Segment("setup", "start", None)
    recorder = Recorder(trace)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with card_kernels(is_cpu=request["is_cpu"], has_flash=request["has_flash"]), card_attention(request["attention"]):
        with fake:
            model, base = build(request, config, request["num_layers"])
        with fake, recorder:
            _track_setup(model, recorder, trace)
            states = _optimizer_states(model, request, trace)
            begin = mark_layers(base, trace)
            if request["is_fast"]:
                run = fast_step(model, request, trace)
                for name in ("first", "second"):
                    begin(name)
                    run()
                    trace.segment = Segment(name, "end", None)
            else:
                for name in ("first", "second")[: 2 if request["accumulates"] else 1]:
                    begin(name)
                    plain_step(base, request, request["rows"], request["row_tokens"], is_eval=False)
                    trace.segment = Segment(name, "end", None)
            if request["eval_rows"]:
                _evaluate(model, base, request, trace, begin)
            trace.segment = Segment("done", "end", None)
            trace.stop()
            del states
    return trace


def _track_setup(model: Any, recorder: Recorder, trace: Trace) -> None:
    """Weights and adapter, layer by layer, so that a middle layer's can be repeated."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts = name.split(".layers.")
        layer = int(parts[1].split(".")[0]) if len(parts) == 2 else None
        trace.segment = Segment("setup", "weights", layer)
        recorder.track([tensor])


def _optimizer_states(model: Any, request: dict[str, Any], trace: Trace) -> list[torch.Tensor]:
    states = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = name.split(".layers.")
        trace.segment = Segment("setup", "optimizer", int(parts[1].split(".")[0]) if len(parts) == 2 else None)
        count = parameter.numel()
        kind = request["optimizer"]
        if kind == "adamw_fp32" and parameter.dtype != torch.float32:
            states += [torch.empty(count, dtype=torch.float32) for _ in range(3)]
        elif kind in ("adamw", "adamw_fp32"):
            states += [torch.empty_like(parameter), torch.empty_like(parameter)]
        elif kind == "paged_adamw_32bit" or count < 4096:
            states += [torch.empty(count, dtype=torch.float32), torch.empty(count, dtype=torch.float32)]
        else:
            blocks = -(-count // 256)
            states += [torch.empty(count, dtype=torch.uint8) for _ in range(2)] + [torch.empty(blocks) for _ in range(2)]
    return states


def _evaluate(model: Any, base: Any, request: dict[str, Any], trace: Trace, begin: Callable[[str], None]) -> None:
    if not request["is_fast"]:
        trace.segment = Segment("zero", "start", None)
        for parameter in model.parameters():
            parameter.grad = None
    begin("evaluation")
    plain_step(base, request, request["eval_rows"], request["eval_row_tokens"], is_eval=True)
    trace.segment = Segment("evaluation", "end", None)


def main() -> NoReturn:
    """Answer one request."""
    gc.freeze()
    gc.enable()
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.read())
    # Libraries print while they work; the answer has stdout for itself.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        trace = simulate(request)
        json.dump(trace.as_dict(), answer)
    # The answer is out: taking the interpreter down would take time, and pyarrow's clean-up has aborted on busy machines.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
