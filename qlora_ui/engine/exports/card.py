"""The model card of an export, from the run's receipt: what it is, what it was made of, how to use it. No path, no name of a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qlora_ui import __version__
from qlora_ui.base.files import read_json
from qlora_ui.engine.exports.stops import stop_ids
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.models import builtin
from qlora_ui.models.catalogue import is_on_hub, public_name
from qlora_ui.models.folder import licence_in_card
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.settings.run_config import RunConfig


def write_card(out: Path, run: RunDir, base: Path, form: str, step: int | None = None) -> None:
    """Write README.md into the export; `step` is that of the checkpoint which it is made of, None for the finished adapter."""
    config = run.config()
    name = public_name(config.model.id)
    is_adapter, is_public = form == "adapter", is_on_hub(config.model.id)
    tags = ["lora", "qlora", "sft", "trl", *([f"base_model:adapter:{name}"] if is_adapter and is_public else [])]
    # The Hub takes models of its own as a base only, and refuses the upload for others.
    head: dict[str, Any] = {"base_model": name} if is_public else {}
    head |= {"library_name": "peft" if is_adapter else "transformers", "pipeline_tag": "text-generation", "tags": tags} | _licence(base)
    receipt = read_json(run.receipt_path)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run.about().get('name') or config.output.name or f'{Path(name).name}, fine-tuned'}",
        _summary(config, name, form),
        _usage(name, form, config, base),
        "## Training\n\n" + _table(_training(config, receipt if isinstance(receipt, dict) else {}, step)),
        "## Limits\n\nTrained with QLoRA UI on the data named above and nothing else. It inherits the base model's licence and "
        "weaknesses, and may repeat what was in the data.",
    ]
    (out / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8", newline="\n")


def _licence(base: Path) -> dict[str, str]:
    """The base's licence as the Hub takes it: one of its list alone, or `other` beside the name that its maker gave it."""
    named = licence_in_card(base)
    if named.get("license") != "other":
        return {"license": named["license"]} if "license" in named else {}
    # A link relative to the base leads nowhere from here.
    return {key: value for key, value in named.items() if key != "license_link" or value.startswith("https://")}


def _summary(config: RunConfig, name: str, form: str) -> str:
    quantized = f"{config.quant.type.upper()}{' with double quantization' if config.quant.double_quant else ''}"
    what = {
        "adapter": f"A LoRA adapter for {name}, trained on its {quantized} weights (QLoRA).",
        "merged-dequantized": f"{name} with a LoRA adapter merged in, on the dequantized {quantized} weights that it was trained with.",
        "merged-original": f"{name} with a LoRA adapter merged into the original weights. The adapter was trained on {quantized} weights.",
    }
    note = ""
    if builtin.is_builtin(config.model.id):
        note = f" The base was the 4-bit copy of {builtin.PACKAGE}, a demonstration; the original weights differ slightly."
    return what[form] + note


def _usage(name: str, form: str, config: RunConfig, base: Path) -> str:
    ends = ""
    tokenizer = load_tokenizer(base, config.model.template)
    if form != "adapter":
        load = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto", device_map="auto")'
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig"
        origin = json.dumps(name) + (f", revision={json.dumps(config.model.revision)}" if config.model.revision else "")
        elsewhere = "" if is_on_hub(config.model.id) else "  # the folder of the base model"
        load = (
            f'bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{config.quant.type}",\n'
            f"                         bnb_4bit_use_double_quant={config.quant.double_quant}, "
            # Its default, fp32, is many times slower.
            f'bnb_4bit_compute_dtype="{config.quant.compute_dtype if config.quant.compute_dtype != "auto" else "bfloat16"}")\n'
            f'base = AutoModelForCausalLM.from_pretrained({origin}, quantization_config=bnb, device_map="auto"){elsewhere}\n'
            'model = PeftModel.from_pretrained(base, ".")'
        )
        # A whole model says it in its own generation_config.json; here it would be the base's.
        stops = stop_ids(base, tokenizer)
        ends = f", eos_token_id={stops}" if stops else ""
    prompt = 'prompt = tokenizer("Once upon a time", return_tensors="pt").to(model.device)'
    if tokenizer.chat_template:
        prompt = (
            'prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello!"}], add_generation_prompt=True,\n'
            '                                       return_tensors="pt", return_dict=True).to(model.device)'
        )
    ask = (
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        f"{prompt}\n"
        f"answer = model.generate(**prompt, max_new_tokens=100{ends})\n"
        "print(tokenizer.decode(answer[0][prompt['input_ids'].shape[1]:]))"
    )
    return f"## Use\n\n```python\n{imports}\n\n{load}\n{ask}\n```"


def _training(config: RunConfig, receipt: Mapping[str, Any], step: int | None) -> list[tuple[str, object]]:
    data, measured, plan = receipt.get("data") or {}, receipt.get("measured") or {}, receipt.get("plan") or {}
    sources = [f"{item.get('name')} ({item.get('rows')} rows)" for item in data.get("sources") or ()]
    versions = receipt.get("versions") or {}
    rows: list[tuple[str, object]] = [
        ("data", ", ".join(sources)),
        ("data, SHA-256", data.get("content_hash")),
        ("rows trained / held back", f"{data['num_train_rows']} / {data['num_eval_rows']}" if "num_train_rows" in data else None),
        ("learned from", config.data.train_on),
        ("longest conversation, tokens", config.data.max_length),
        ("LoRA rank / alpha / dropout", f"{config.lora.rank} / {config.alpha} / {config.lora.dropout}"),
        ("layers", ", ".join(config.lora.targets)),
        ("effective batch / steps", f"{config.effective_batch} / {step or _steps(config, receipt) or plan.get('steps') or '?'}"),
        ("learning rate", f"{config.train.learning_rate:g}, {config.train.schedule}"),
        ("seed", config.train.seed),
        ("first / last training loss", _pair(measured.get("first_loss"), measured.get("final_loss"))),
        ("best loss on held-back rows", _number(measured.get("best_eval_loss"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if name in _NAMED)),
        ("QLoRA UI", __version__),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _steps(config: RunConfig, receipt: Mapping[str, Any]) -> str:
    """How many steps the finished adapter has learned from: those up to the best check, where that one was kept."""
    measured = receipt.get("measured") or {}
    steps, best = measured.get("steps"), measured.get("best_eval_step")
    is_earlier = config.eval.keep_best and receipt.get("status") == "done" and best and best != steps
    return f"{best} of {steps}, where the held-back loss was lowest" if is_earlier else str(steps or "")


_NAMED = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def _number(value: object) -> str | None:
    return f"{value:.4f}" if isinstance(value, float) else None


def _pair(first: object, last: object) -> str | None:
    return f"{first:.4f} / {last:.4f}" if isinstance(first, float) and isinstance(last, float) else None


def _table(rows: list[tuple[str, object]]) -> str:
    cells = [(name, str(value).replace("|", "\\|").replace("\n", " ")) for name, value in rows]
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in cells)
