"""What is trained: which layers carry an adapter, how many numbers that is, and what gradients and optimizer keep for each."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ui.base.errors import Problem
from qlora_ui.models.facts import Linear, ModelFacts
from qlora_ui.settings.sections import LoraSection


@dataclass(frozen=True, slots=True)
class Adapter:
    """The trained part of a model."""

    linears: tuple[Linear, ...]
    """Targeted layers of one decoder layer."""
    num_lora_params: int
    num_saved_params: int
    """Of modules_to_save, trained in full."""
    trains_embedding: bool
    trains_head: bool
    unknown: tuple[str, ...]
    """Targets that the model does not have."""

    @property
    def num_params(self) -> int:
        """All trained numbers."""
        return self.num_lora_params + self.num_saved_params


def adapter_of(facts: ModelFacts, lora: LoraSection) -> Adapter:
    """What LoRA trains of a model: r·(in + out) for each targeted layer, plus its outputs for DoRA's magnitudes."""
    wanted = {_last(name) for name in lora.targets}
    everything = "all-linear" in wanted
    linears = tuple(linear for linear in facts.linears if everything or linear.name in wanted)
    known = {linear.name for linear in facts.linears} | {"all-linear", "embed_tokens"}
    unknown = tuple(sorted(name for name in set(lora.targets) if _last(name) not in known))
    per_layer = sum(lora.rank * (linear.num_in + linear.num_out) + (linear.num_out if lora.dora else 0) for linear in linears)
    matrix = facts.vocab_size * facts.hidden_size
    saved = {_last(name) for name in lora.modules_to_save}
    embedding, head = "embed_tokens" in saved, "lm_head" in saved
    magnitudes = facts.hidden_size if lora.dora else 0
    of_embedding = lora.rank * (facts.vocab_size + facts.hidden_size) + magnitudes if "embed_tokens" in wanted else 0
    return Adapter(
        linears=linears,
        num_lora_params=facts.num_layers * per_layer + of_embedding,
        num_saved_params=matrix * (embedding + head) + _saved_norm_params(facts, saved),
        trains_embedding=embedding,
        trains_head=head,
        unknown=unknown,
    )


def layer_choices(facts: ModelFacts) -> dict[str, list[str]]:
    """By option, the model's own names of layers that it can hold."""
    linears = [linear.name for linear in facts.linears]
    return {"lora.targets": ["all-linear", *linears], "lora.modules_to_save": ["embed_tokens", "lm_head", *_norms(facts)]}


def layer_problems(facts: ModelFacts, lora: LoraSection) -> list[Problem]:
    """Layers that the settings name and this model cannot train so; peft would pass over them in silence, or break off."""
    linears = [linear.name for linear in facts.linears]
    whole = layer_choices(facts)["lora.modules_to_save"]
    problems = []
    if unknown := adapter_of(facts, lora).unknown:
        what = f"The model has no layer named {', '.join(unknown)}"
        why = f"Its linear layers are {', '.join(linears)}"
        problems.append(Problem("lora.targets", what, why, "Choose among them, or all-linear", "layers"))
    if strange := [name for name in lora.modules_to_save if _last(name) not in whole]:
        is_linear = any(_last(name) in linears for name in strange)
        what = f"{', '.join(strange)} cannot be trained in full"
        why = "Linear layers are kept in 4 bits, which cannot be changed" if is_linear else "The model has no such layer"
        problems.append(Problem("lora.modules_to_save", what, why, f"Choose among {', '.join(whole)}", "layers"))
    return problems


def _last(name: str) -> str:
    """The last part of a layer's name, by which peft finds it too (`self_attn.q_proj`)."""
    return name.rpartition(".")[2]


def _norms(facts: ModelFacts) -> tuple[str, ...]:
    """The norms as transformers names them."""
    more = ("pre_feedforward_layernorm", "post_feedforward_layernorm") if facts.norms_per_layer > 2 else ()
    return ("norm", "input_layernorm", "post_attention_layernorm", *more, *(("q_norm", "k_norm") if facts.has_qk_norm else ()))


def _saved_norm_params(facts: ModelFacts, saved: set[str]) -> int:
    """Numbers of the norms that are trained in full; peft takes every layer whose name ends so, for `norm` all of them."""
    sizes = {"norm": facts.hidden_size} | dict.fromkeys(("q_norm", "k_norm"), facts.num_layers * facts.head_dim)
    chosen = (name for name in _norms(facts) if any(name.endswith(asked) for asked in saved))
    return sum(sizes.get(name, facts.num_layers * facts.hidden_size) for name in chosen)


def optimizer_bytes(optimizer: str, num_params: int, bytes_each: int) -> int:
    """States of the optimizer.

    torch's AdamW keeps two numbers in the parameter's own dtype; bitsandbytes two of 8 bits with an absmax (fp32) for each 256, or two
    of 32 bits. Paged states are managed memory: the driver may move them out, until then they are on the card. Master weights are a copy
    in fp32, with states in fp32, of weights that are not in fp32 themselves.
    """
    if optimizer == "adamw_fp32":
        return (12 if bytes_each < 4 else 8) * num_params
    if optimizer == "adamw":
        return 2 * bytes_each * num_params
    if optimizer == "paged_adamw_32bit":
        return 8 * num_params
    return 2 * num_params + 2 * 4 * num_params // 256
