"""From a model's config.json to its shape: every linear layer, embedding and norm that transformers will build.

Defaults of absent keys are those of the configuration classes in transformers 5.24; counts are exact (a test compares them with
the models that transformers builds on the meta device). Nothing is imported, downloaded or loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_ui.base.errors import ModelError
from qlora_ui.models.facts import Linear, ModelFacts

Config = Mapping[str, Any]

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_QUANTIZED_AS = "bitsandbytes"

SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
"""Configuration of the built-in model, so that it can be estimated before it is converted."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How transformers builds one model type where config.json is silent."""

    is_tied: bool = False
    activation: str = "silu"
    norms_per_layer: int = 2
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    """Always, whatever the config says (Qwen2)."""
    is_merged: bool = False
    """q, k, v in one matrix and gate, up in another (Phi-3)."""
    head_dim: int | None = None
    vocab_size: int = 32000
    sliding_window: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windowed_layers: Callable[[Config, int], int] = lambda config, num_layers: 0


def _all_layers(config: Config, num_layers: int) -> int:
    return num_layers


def _qwen_layers(config: Config, num_layers: int) -> int:
    if not config.get("use_sliding_window"):
        return 0
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int):
        raise _bad_number("max_window_layers", first)
    return max(0, num_layers - first)


def _every_other_layer(config: Config, num_layers: int) -> int:
    return (num_layers + 1) // 2


def _gemma3_layers(config: Config, num_layers: int) -> int:
    key = "sliding_window_pattern" if config.get("sliding_window_pattern") else "_sliding_window_pattern"
    return num_layers - num_layers // _count(config, key, 6)


_GEMMA = _Family(is_tied=True, activation="gelu_pytorch_tanh", head_dim=256, vocab_size=256000)
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(sliding_window=4096, windowed_layers=_all_layers),
    "qwen2": _Family(has_qkv_bias=True, vocab_size=151936, windowed_layers=_qwen_layers),
    "qwen3": _Family(has_qk_norm=True, head_dim=128, vocab_size=151936, windowed_layers=_qwen_layers),
    "gemma": _GEMMA,
    "gemma2": replace(
        _GEMMA,
        norms_per_layer=4,
        sliding_window=4096,
        attention_softcap=50.0,
        logit_softcap=30.0,
        windowed_layers=_every_other_layer,
    ),
    "gemma3_text": replace(
        _GEMMA, vocab_size=262208, norms_per_layer=4, has_qk_norm=True, sliding_window=4096, windowed_layers=_gemma3_layers
    ),
    "phi3": _Family(is_merged=True, vocab_size=32064, windowed_layers=_all_layers),
    "smollm3": _Family(is_tied=True, vocab_size=128256, windowed_layers=_qwen_layers),
}
SUPPORTED_TYPES = tuple(_FAMILIES)
_NAMES = "Llama, Qwen 2, 2.5 and 3, Mistral, Gemma 1, 2 and 3 (text), Phi-3 and 4, SmolLM 2 and 3"


def facts_from_config(config: Config) -> ModelFacts:
    """The shape of the model that a config.json describes.

    Raises ModelError for mixtures of experts, models that need code of their own or cannot write text, other quantizations than
    bitsandbytes' and types that the app does not know: a wrong estimate would be worse than none.
    """
    model_type = str(config.get("model_type") or "")
    _refuse(config, model_type)
    family = _FAMILIES[model_type]
    hidden, num_layers = _count(config, "hidden_size"), _count(config, "num_hidden_layers")
    num_heads = _count(config, "num_attention_heads")
    num_kv_heads = _count(config, "num_key_value_heads", num_heads)
    head_dim = _count(config, "head_dim", family.head_dim or hidden // num_heads)
    intermediate = _count(config, "intermediate_size")
    windowed = _num_windowed(config, family, num_layers)
    rotary_share = _number(config, "partial_rotary_factor", _rope(config).get("partial_rotary_factor"), 1.0)
    norm_params = num_layers * (family.norms_per_layer * hidden + (2 * head_dim if family.has_qk_norm else 0)) + hidden
    return ModelFacts(
        model_type=model_type,
        architecture=_architecture(config),
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=_count(config, "vocab_size", family.vocab_size),
        is_tied=bool(config.get("tie_word_embeddings", family.is_tied)),
        linears=_linears(config, family, num_heads * head_dim, num_kv_heads * head_dim),
        num_norm_params=norm_params,
        context_tokens=_count(config, "max_position_embeddings", 2048),
        sliding_window=_window(config, family) if windowed else None,
        num_windowed_layers=windowed,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        activation=str(config.get("hidden_activation") or config.get("hidden_act") or family.activation),
        has_qk_norm=family.has_qk_norm,
        norms_per_layer=family.norms_per_layer,
        rotary_dim=int(head_dim * rotary_share) if rotary_share < 1 else None,
        attention_softcap=_optional(config, "attn_logit_softcapping", family.attention_softcap),
        logit_softcap=_optional(config, "final_logit_softcapping", family.logit_softcap),
    )


def builtin_facts() -> ModelFacts:
    """Facts of the built-in SmolLM2-135M-Instruct, known without its converted folder."""
    return facts_from_config(SMOLLM2_135M)


def _refuse(config: Config, model_type: str) -> None:
    experts = next((config[key] for key in _EXPERT_KEYS if isinstance(config.get(key), int) and config[key] > 1), 0)
    if experts or "moe" in model_type:
        raise ModelError(
            f"This is a mixture of {experts or 'several'} experts ({model_type}).",
            why="bitsandbytes does not convert its experts to 4 bits, so memory and time cannot be told.",
            fix=f"Choose a dense model: {_NAMES}.",
            code="model-moe",
        )
    if "vision_config" in config or "text_config" in config:
        raise ModelError(
            f"This model ({model_type}) also takes images or sound.",
            why="The app trains text models only.",
            fix="Choose a text model of the family, for Gemma 3 the 270M or 1B one.",
            code="model-multimodal",
        )
    if model_type not in _FAMILIES:
        own_code = "It comes with Python code of its own, which the app does not run. " if config.get("auto_map") else ""
        raise ModelError(
            f"Models of type “{model_type[:60]}” are not supported." if model_type else "The config.json names no model type.",
            why=f"{own_code}The app knows the layers of {_NAMES}.",
            fix="Choose a model of one of these families.",
            code="model-unsupported",
        )
    architecture = _architecture(config)
    if architecture and not architecture.endswith("ForCausalLM"):
        raise ModelError(
            f"This model does not write text: its config.json names it {architecture[:60]}.",
            why="Models for embeddings, rewards or classes have no output layer for words, so training would use a random one.",
            fix="Choose a model that writes text; its config.json names one that ends in ForCausalLM.",
            code="model-no-text",
        )
    quantization = config.get("quantization_config")
    method = str(quantization.get("quant_method") or _QUANTIZED_AS) if isinstance(quantization, Mapping) else _QUANTIZED_AS
    if method != _QUANTIZED_AS:
        raise ModelError(
            f"This model is already quantized as {method[:20]}.",
            why="QLoRA quantizes the base itself, with bitsandbytes.",
            fix="Choose the original model, in 16 bits.",
            code="model-quantized",
        )


def _architecture(config: Config) -> str:
    """The class that the config.json names first; empty where it names none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _linears(config: Config, family: _Family, q_out: int, kv_out: int) -> tuple[Linear, ...]:
    hidden, intermediate = _count(config, "hidden_size"), _count(config, "intermediate_size")
    if family.is_merged:
        return (
            Linear("qkv_proj", hidden, q_out + 2 * kv_out, False, "attention"),
            Linear("o_proj", q_out, hidden, False, "attention"),
            Linear("gate_up_proj", hidden, 2 * intermediate, False, "mlp"),
            Linear("down_proj", intermediate, hidden, False, "mlp"),
        )
    attention_bias = bool(config.get("attention_bias", False)) and not family.has_qkv_bias
    qkv_bias, mlp_bias = family.has_qkv_bias or attention_bias, bool(config.get("mlp_bias", False))
    return (
        Linear("q_proj", hidden, q_out, qkv_bias, "attention"),
        Linear("k_proj", hidden, kv_out, qkv_bias, "attention"),
        Linear("v_proj", hidden, kv_out, qkv_bias, "attention"),
        Linear("o_proj", q_out, hidden, attention_bias, "attention"),
        Linear("gate_proj", hidden, intermediate, mlp_bias, "mlp"),
        Linear("up_proj", hidden, intermediate, mlp_bias, "mlp"),
        Linear("down_proj", intermediate, hidden, mlp_bias, "mlp"),
    )


def _num_windowed(config: Config, family: _Family, num_layers: int) -> int:
    if _window(config, family) is None:
        return 0
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and len(layer_types) == num_layers:
        return sum(kind == "sliding_attention" for kind in layer_types)
    return family.windowed_layers(config, num_layers)


def _window(config: Config, family: _Family) -> int | None:
    value = config.get("sliding_window", family.sliding_window)
    return value if isinstance(value, int) and value > 0 else None


def _rope(config: Config) -> Config:
    value = config.get("rope_parameters")
    return value if isinstance(value, Mapping) else {}


def _count(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise _bad_number(key, value)
    return value


def _bad_number(key: str, value: object) -> ModelError:
    return ModelError(
        f"The config.json gives {key} as {str(value)[:40]}.",
        why="A positive whole number belongs there.",
        fix="Download the model again, or choose another.",
        code="model-config",
    )


def _number(config: Config, key: str, *defaults: Any) -> float:
    values = (config.get(key), *defaults)
    return float(next(value for value in values if isinstance(value, int | float)))


def _optional(config: Config, key: str, default: float | None) -> float | None:
    value = config.get(key, default)
    return float(value) if isinstance(value, int | float) else None
