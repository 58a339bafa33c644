"""A run's settings as a program that anybody can read and run: plain transformers, peft, trl and bitsandbytes, nothing of ours.

It builds model, adapter and trainer in the order in which the app does, on the same tokens, so that on a CPU its loss curve is
the app's to the last digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from qlora_ui.settings.intervals import Intervals, warmup_argument
from qlora_ui.settings.run_config import RunConfig, option_by_path
from qlora_ui.settings.upstream import bnb_arguments, lora_arguments, sft_arguments

WIDTH = 116


@dataclass(frozen=True, slots=True)
class ScriptFacts:
    """What the program needs to know beside the settings."""

    model: str
    """Hub id of the base, or the name of a folder that the user gives the path of."""
    plan: Intervals
    has_eval: bool
    template: str | None = None
    """End token of a chosen chat template, whose text lies in `chat_template.jinja`; None keeps the model's own."""
    run_id: str = ""
    rows_in_one: float = 1.0
    """Conversations in a packed row of the run, on average; 1 where rows were not packed."""


def render_script(config: RunConfig, facts: ScriptFacts) -> str:
    """The text of `train.py`: about 60 lines that train on `data/*.tokens.parquet` beside it."""
    alone = as_one_program(config, facts.rows_in_one)
    return _opening(config, facts) + _model(alone) + _training(alone, facts)


def as_one_program(config: RunConfig, rows_in_one: float) -> RunConfig:
    """The same learning by one process on rows that are not packed, as the exported files have it.

    What several cards shared of a batch is added up, and so are the conversations that shared a packed row: a step learns from as many.
    """
    one = {"launch.num_processes": 1, "launch.num_machines": 1, "launch.machine_rank": 0, "launch.sharding": "none"}
    rounds = round(config.train.accumulation * config.launch.num_processes * config.launch.num_machines * rows_in_one)
    most = option_by_path()["train.accumulation"].maximum
    return config.changed({**one, "train.accumulation": min(max(rounds, 1), int(most or rounds))})


def otherwise_words(config: RunConfig, facts: ScriptFacts) -> str:
    """What the exported files do otherwise than the run, in sentences; empty where they do the same."""
    cards = config.launch.num_processes * config.launch.num_machines
    share, pack = ("The run shared", "The run packed") if facts.run_id else ("A run would share", "A run would pack")
    shared = f"{share} each batch among {cards} processes; this is one, and adds up {cards} times as many rounds."
    packed = (
        f"{pack} about {facts.rows_in_one:.3g} conversations into a row; here each has its own, and as many more rounds\n"
        "are added up: a step learns from about as many conversations, and the curve is close to the run's, not the same."
    )
    return "\n".join(([shared] if cards > 1 else []) + ([packed] if facts.rows_in_one > 1 else []))


def _opening(config: RunConfig, facts: ScriptFacts) -> str:
    """What it is, what it needs, and the data."""
    files = '{"train": str(HERE / "data/train.tokens.parquet")' + (
        ', "eval": str(HERE / "data/eval.tokens.parquet")}' if facts.has_eval else "}"
    )
    words = otherwise_words(config, facts)
    otherwise = f"\n{words}\n" if words else ""
    stopper = "EarlyStoppingCallback, " if _stops(config, facts) else ""
    on_masters = config.train.optimizer == "adamw_fp32"
    # A folder may have quotes in its name, which would end the text here and begin the program.
    model = facts.model.replace('"', "'").replace("\\", "/")
    return f'''"""QLoRA fine-tuning of {model}{f", as in the run {facts.run_id}" if facts.run_id else ""}.

    pip install -r requirements.txt
    python train.py [MODEL]        MODEL: another Hub id, or the folder of the base model

Writes the adapter to adapter/ and every logged number to history.json. data/*.jsonl are the conversations, data/*.tokens.parquet
the same as tokens: columns input_ids and labels, where -100 marks what is not learned (questions, and what the template adds).
{otherwise}"""

import json
import os
import sys
{"from collections.abc import Callable, Iterable" + chr(10) if on_masters else ""}from pathlib import Path
{"from typing import Any" + chr(10) if on_masters else ""}
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
import bitsandbytes as bnb
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, {stopper}set_seed
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).resolve().parent
MODEL = sys.argv[1] if len(sys.argv) > 1 else {_literal(facts.model)}
CUDA = {"False" if config.launch.device == "cpu" else "torch.cuda.is_available()"}
DTYPE = {_dtype(config)}

data = load_dataset("parquet", data_files={files})
tokenizer = AutoTokenizer.from_pretrained(MODEL{_revision(config)}){_template(facts)}

'''


def _model(config: RunConfig) -> str:
    """The base model in 4 bits."""
    bnb = _call("BitsAndBytesConfig", {**bnb_arguments(config, "DTYPE"), "bnb_4bit_compute_dtype": _Code("DTYPE")})
    return f"""# The base in 4 bits: 16 levels a weight, one scale for each block of 64, arithmetic in DTYPE.
quantization = {bnb}
model = AutoModelForCausalLM.from_pretrained(
    MODEL{_revision(config)}, dtype=DTYPE{_attention(config)}, device_map={{"": 0 if CUDA else "cpu"}},
    quantization_config=quantization,
)
model.config.use_cache = False
for module in model.modules():
    if isinstance(module, bnb.nn.Linear4bit):
        # CPUs with AVX512-BF16 would repack the weights at the first evaluation, and the gradients after it would be wrong.
        module.support_avx512bf16_for_cpu = False

"""


def _attention(config: RunConfig) -> str:
    """The chosen attention; nothing leaves it to transformers, which takes what the app takes: SDPA, and eager where scores are capped."""
    return "" if config.model.attention == "auto" else f', attn_implementation="{config.model.attention}"'


def _training(config: RunConfig, facts: ScriptFacts) -> str:
    """The adapter, the trainer, and what is kept."""
    lora = _call("LoraConfig", lora_arguments(config))
    sft = _call("SFTConfig", _sft_lines(config, facts))
    return f"""# The adapter: two thin matrices beside each chosen layer; they are all that learns.
lora = {lora}
args = {sft}

{_masters(config)}set_seed({config.train.seed})
trainer = SFTTrainer(
    model=model, args=args, peft_config=lora, processing_class=tokenizer,
    train_dataset=data["train"], eval_dataset={'data["eval"]' if facts.has_eval else "None"},{_stopping(config, facts)}{_on_masters(config)}
)
if DTYPE != torch.bfloat16:
    # TRL makes adapters bf16, which fp16's loss scaling cannot work with and fp32 does not want.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

trainer.train()
trainer.save_model(str(HERE / "adapter"))
history = json.dumps(trainer.state.log_history, indent=1)
(HERE / "history.json").write_text(history, encoding="utf-8")
"""


def _masters(config: RunConfig) -> str:
    """The optimizer on fp32 master weights, as the app has it: no library offers one."""
    if config.train.optimizer != "adamw_fp32":
        return ""
    source = (resources.files("qlora_ui") / "engine/master_weights.py").read_text(encoding="utf-8")
    return source[source.index("class MasterAdamW") :].replace("  # type: ignore[misc]", "") + "\n\n"


def _on_masters(config: RunConfig) -> str:
    if config.train.optimizer != "adamw_fp32":
        return ""
    chosen = "(MasterAdamW, SFTTrainer.get_optimizer_cls_and_kwargs(args)[1])"
    return f"\n    optimizer_cls_and_kwargs={chosen} if DTYPE == torch.bfloat16 else None,"


def _revision(config: RunConfig) -> str:
    return f", revision={config.model.revision!r}" if config.model.revision else ""


class _Code(str):
    """A text that stands in the program as it is."""

    __slots__ = ()


def _sft_lines(config: RunConfig, facts: ScriptFacts) -> dict[str, Any]:
    """Arguments of SFTConfig; those that depend on the machine become a choice on CUDA."""
    on_card = sft_arguments(config, on_gpu=True, compute_dtype="bfloat16")
    on_cpu = sft_arguments(config, on_gpu=False, compute_dtype="float32")
    arguments: dict[str, Any] = {"output_dir": _Code('str(HERE / "checkpoints")')}
    for name, value in on_card.items():
        same = value == on_cpu[name]
        arguments[name] = value if same else _Code(f"{_literal(value)} if CUDA else {_literal(on_cpu[name])}")
    arguments["bf16"] = _Code("CUDA and DTYPE == torch.bfloat16")
    arguments["fp16"] = _Code("CUDA and DTYPE == torch.float16")
    arguments["use_cpu"] = _Code("not CUDA")
    arguments |= run_arguments(config, facts)
    arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "dataloader_pin_memory": _Code("CUDA")}
    if _keeps_best(config, facts):
        arguments["load_best_model_at_end"] = True
    return {name: value for name, value in arguments.items() if value is not None}


def run_arguments(config: RunConfig, facts: ScriptFacts) -> dict[str, Any]:
    """Arguments of SFTConfig that a run has beside those of `sft_arguments`, but for what depends on the place: intervals and silence."""
    return {
        "max_length": config.data.max_length,
        "warmup_steps": warmup_argument(config, facts.plan.num_steps),
        "eval_strategy": "steps" if facts.has_eval else "no",
        "eval_steps": facts.plan.eval_every if facts.has_eval else None,
        "save_strategy": "steps",
        "save_steps": facts.plan.save_every,
        "save_total_limit": config.output.keep_last,
        "logging_first_step": True,
        "prediction_loss_only": True,
        "report_to": "none",
    }


def _keeps_best(config: RunConfig, facts: ScriptFacts) -> bool:
    plan = facts.plan
    return facts.has_eval and config.eval.keep_best and plan.save_every % plan.eval_every == 0


def _stops(config: RunConfig, facts: ScriptFacts) -> bool:
    return config.eval.patience > 0 and _keeps_best(config, facts)


def _stopping(config: RunConfig, facts: ScriptFacts) -> str:
    return f"\n    callbacks=[EarlyStoppingCallback({config.eval.patience})]," if _stops(config, facts) else ""


def _dtype(config: RunConfig) -> str:
    if config.quant.compute_dtype != "auto":
        return f"torch.{config.quant.compute_dtype}"
    if config.launch.device == "cpu":
        return "torch.float32"
    return "(torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16) if CUDA else torch.float32"


def _template(facts: ScriptFacts) -> str:
    if facts.template is None:
        return ""
    return f"""
template, end = (HERE / "chat_template.jinja").read_text(encoding="utf-8"), {facts.template!r}
if end in tokenizer.get_vocab():
    tokenizer.eos_token = end
# The end of a turn must be one token: the model's own where it does not know this one.
tokenizer.chat_template = template.replace(end, tokenizer.eos_token)"""


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call with its arguments filled into lines."""
    lines, line = [], "   "
    for key, value in arguments.items():
        part = f" {key}={_literal(value)},"
        if len(line) + len(part) > WIDTH:
            lines.append(line)
            line = "   "
        line += part
    return "\n".join([f"{name}(", *lines, line, ")"])


def _literal(value: Any) -> str:
    """The value as Python writes it, with double quotes."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
