"""What is known of a base model from its config.json and safetensors headers, without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of one decoder layer, as transformers names it (`q_proj`, `qkv_proj`, `gate_up_proj`, …)."""

    name: str
    num_in: int
    num_out: int
    has_bias: bool
    block: str
    """`attention` or `mlp`."""

    @property
    def num_weights(self) -> int:
        return self.num_in * self.num_out


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The shape of a causal language model and what its folder says of it."""

    model_type: str
    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    """Whether input embedding and output layer are one matrix."""
    linears: tuple[Linear, ...]
    """Linear layers of one decoder layer, in order; bitsandbytes converts all of them."""
    num_norm_params: int
    """Norm weights of the whole model."""
    context_tokens: int
    sliding_window: int | None = None
    num_windowed_layers: int = 0
    """Layers whose attention sees only the sliding window."""
    dtype: str = "bfloat16"
    activation: str = "silu"
    has_qk_norm: bool = False
    norms_per_layer: int = 2
    """Norms over the hidden size in one decoder layer; Gemma 2 and 3 have four."""
    rotary_dim: int | None = None
    """Dimensions of a head that are rotated; None for all of them."""
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    stored_params: int | None = None
    """Parameters counted in the safetensors headers; None where only the config is known."""
    stored_bytes: int | None = None
    """Of all weight files together, likewise."""
    licence: str = ""
    has_chat_template: bool | None = None
    """None where the folder was not looked at."""

    @property
    def query_width(self) -> int:
        """Numbers of all heads' queries, for one token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers of the keys of one token, or of its values; less than of its queries where heads share them in groups."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_quantized_params(self) -> int:
        """Weights that become 4-bit: every linear layer but the output layer."""
        return self.num_layers * sum(linear.num_weights for linear in self.linears)

    @property
    def num_embedding_params(self) -> int:
        """Input embedding and, where it is a matrix of its own, the output layer."""
        return self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)

    @property
    def num_bias_params(self) -> int:
        return self.num_layers * sum(linear.num_out for linear in self.linears if linear.has_bias)

    @property
    def num_params(self) -> int:
        """All parameters, a tied matrix counted once."""
        return self.num_quantized_params + self.num_embedding_params + self.num_bias_params + self.num_norm_params
