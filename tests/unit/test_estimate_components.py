"""Components that only some settings bring, against bytes counted by hand: masks of windows, trained output layers, fp16, DoRA, paging."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qlora_ui.estimate.activations import layer_bytes
from qlora_ui.estimate.adapter import adapter_of, optimizer_bytes
from qlora_ui.estimate.chat import cache_bytes
from qlora_ui.estimate.memory import MemoryEstimate, estimate_memory
from qlora_ui.estimate.workload import Workload, workload_of
from qlora_ui.hardware.devices import named_device
from qlora_ui.models.architecture import facts_from_config
from qlora_ui.models.facts import ModelFacts
from qlora_ui.settings.run_config import RunConfig

MISTRAL_CONFIG = {
    "model_type": "mistral", "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 32000, "head_dim": 128}  # fmt: skip
MISTRAL = facts_from_config({**MISTRAL_CONFIG, "sliding_window": 1024})
QWEN = facts_from_config({
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True})  # fmt: skip
CARD, OLD_CARD = named_device("RTX 4090"), named_device("T4")
PLAIN = RunConfig().changed(
    {"train.fast_path": "off", "train.packing": "off", "eval.share": 0, "train.batch_size": 1, "data.max_length": 2048, "lora.dropout": 0}
)


def estimate(facts: ModelFacts, **changes: Any) -> MemoryEstimate:
    return estimate_memory(facts, PLAIN.changed({name.replace("__", "."): value for name, value in changes.items()}), CARD)


def work_of(facts: ModelFacts, **changes: Any) -> Workload:
    return workload_of(facts, PLAIN.changed({name.replace("__", "."): value for name, value in changes.items()}), CARD)


def test_a_window_shorter_than_the_row_brings_a_mask_and_its_bias() -> None:
    # One byte a pair of positions for the mask, two for the bias that the layer at work makes of it.
    inside, beyond = work_of(MISTRAL, data__max_length=1023), work_of(MISTRAL)
    assert (inside.num_masks(1, 1023), inside.num_masks(2, 1023), beyond.num_masks(1, 1024)) == (0, 1, 1)
    assert work_of(MISTRAL, train__packing="on").num_masks(2, 2048) == 0  # packed rows run on a kernel that knows windows
    whole = facts_from_config({**MISTRAL_CONFIG, "sliding_window": None})
    with_window, without = estimate(MISTRAL).parts["activations"], estimate(whole).parts["activations"]
    # With a mask keys and values are repeated for every query head.
    assert with_window - without == 3 * 2048 * 2048 + 2 * 2 * (2048 - 512) * 2048


def test_a_trained_output_layer_by_hand() -> None:
    matrix = 151936 * 1536
    trained, frozen = estimate(QWEN, lora__modules_to_save="lm_head"), estimate(QWEN)
    assert trained.parts["weights_16bit"] == frozen.parts["weights_16bit"]  # the frozen original stays beside the copy
    assert trained.parts["adapter"] - frozen.parts["adapter"] == 2 * matrix
    assert trained.parts["optimizer"] - frozen.parts["optimizer"] == 4 * matrix
    # The gradient in fp32 and in bf16, beside that of the micro-batch before.
    assert trained.moment == "loss" and trained.parts["loss_head"] - frozen_loss(QWEN) == (4 + 2) * matrix
    assert trained.parts["gradients"] == 2 * (matrix + adapter_of(QWEN, PLAIN.lora).num_params)


def frozen_loss(facts: ModelFacts) -> int:
    """A tile of logits, what is graded with its gradient in fp32, the final norm's input in fp32 and its output: 2,048 tokens."""
    return 2048 * 32768 * 2 + 2 * 2048 * facts.hidden_size * (4 + 2)


def test_a_trained_embedding_by_hand() -> None:
    # Its gradient comes last, beside that of the micro-batch before; with one micro-batch there is only the one.
    matrix = 151936 * 1536
    changes = {"lora__modules_to_save": "embed_tokens", "data__max_length": 256}
    twice, once = estimate(QWEN, **changes), estimate(QWEN, **changes, train__accumulation=1)
    params = matrix + adapter_of(QWEN, PLAIN.lora).num_params
    assert (twice.moment, twice.parts["gradients"]) == ("embedding", 2 * (params + matrix))
    assert once.parts["gradients"] == 2 * (params if once.moment == "embedding" else params - matrix)


GEMMA2 = facts_from_config({
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000})  # fmt: skip
GEMMA3 = facts_from_config({
    "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512})  # fmt: skip


def test_capped_scores_of_packed_rows_exist_for_one_row_at_a_time() -> None:
    # Of 8 heads: what capping has saved in bf16, what softmax has saved and its two gradients in fp32. Two rows need no more than one.
    config = PLAIN.changed({"train.packing": "on", "data.max_length": 8192})
    work, adapter = workload_of(GEMMA2, config, CARD), adapter_of(GEMMA2, config.lora)
    one, two = (layer_bytes(GEMMA2, adapter, config.lora, work, rows=rows, row_tokens=8192).working for rows in (1, 2))
    assert work.attention == "rows" and 2 * one - two == (2 + 3 * 4) * 8 * 8192**2


def test_capped_scores_of_padded_rows_are_kept_thrice() -> None:
    eager, plain = (
        workload_of(facts, PLAIN.changed({"model.attention": "eager"}), CARD) for facts in (GEMMA2, replace(GEMMA2, attention_softcap=None))
    )
    square, adapter = 8 * 2048**2, adapter_of(GEMMA2, PLAIN.lora)
    saved = [layer_bytes(GEMMA2, adapter, PLAIN.lora, work, rows=1, row_tokens=2048).saved for work in (eager, plain)]
    assert saved[0] - saved[1] == 2 * square  # the hyperbolic tangent, beside softmax in fp32 and its copy
    # Both kinds of layers have a mask, of one number for each pair of positions, even where nothing is padded.
    assert eager.num_masks(1, 100) == 2


@pytest.mark.parametrize("fast_path", ["auto", "off"])
def test_a_check_of_padded_rows_writes_out_all_capped_scores(fast_path: str) -> None:
    # For each of 8 heads: the scores, the same in fp32 and what softmax makes of them.
    changes = {"train.fast_path": fast_path, "train.packing": "off", "train.batch_size": 1, "data.max_length": 4096, "eval.share": 0.1}
    four, eight = (estimate_memory(GEMMA2, PLAIN.changed({**changes, "eval.batch_size": rows}), CARD).total_bytes for rows in (4, 8))
    assert eight - four >= 4 * (2 + 4 + 4) * 8 * 4096**2


def test_only_the_layers_that_have_a_window_get_its_mask() -> None:
    work = work_of(GEMMA3)
    assert (work.num_masks(1, 511), work.num_masks(1, 512), work.num_masks(2, 100)) == (0, 1, 2)
    assert work.masked_share(1, 2048) == pytest.approx(22 / 26) and work.masked_share(2, 100) == 1


def test_fp32_magnitudes_make_the_stream_fp32() -> None:
    # In fp16 what is trained is fp32; DoRA's magnitudes scale what goes into the residual stream, plain LoRA's products are autocast.
    lora, dora = PLAIN, PLAIN.changed({"lora.dora": True})
    assert [workload_of(QWEN, config, OLD_CARD).stream_bytes for config in (lora, dora)] == [2, 4]
    assert workload_of(QWEN, PLAIN.changed({"lora.modules_to_save": "embed_tokens"}), OLD_CARD).stream_bytes == 4
    assert workload_of(QWEN, PLAIN.changed({"lora.dora": True, "lora.targets": "q_proj,v_proj"}), OLD_CARD).stream_bytes == 2
    assert workload_of(QWEN, dora, CARD).stream_bytes == 2
    work = workload_of(QWEN, dora, OLD_CARD)
    assert layer_bytes(QWEN, adapter_of(QWEN, dora.lora), dora.lora, work, rows=1, row_tokens=512).checkpoint == 512 * 4 * 1536


def test_dora_with_dropout_keeps_the_dense_weights() -> None:
    config = PLAIN.changed({"lora.dora": True, "lora.dropout": 0.05})
    work, adapter = workload_of(QWEN, config, CARD), adapter_of(QWEN, config.lora)
    one, two = (layer_bytes(QWEN, adapter, config.lora, work, rows=1, row_tokens=length).saved for length in (512, 1024))
    assert 2 * one - two == 2 * sum(linear.num_weights for linear in QWEN.linears)


def test_fp16_keeps_adapters_gradients_and_states_in_fp32() -> None:
    config = RunConfig().changed({"eval.share": 0})
    params = adapter_of(QWEN, config.lora).num_params
    parts = estimate_memory(QWEN, config, OLD_CARD).parts
    assert (parts["adapter"], parts["gradients"], parts["optimizer"]) == (4 * params, 4 * params, 8 * params)
    assert parts["weights_16bit"] == estimate_memory(QWEN, config, CARD).parts["weights_16bit"]


@pytest.mark.parametrize(("optimizer", "each"), [("paged_adamw_32bit", 8), ("paged_adamw_8bit", 2 + 8 / 256), ("adamw_8bit", 2 + 8 / 256)])
def test_states_of_optimizers_paged_or_not_are_on_the_card(optimizer: str, each: float) -> None:
    params = adapter_of(QWEN, PLAIN.lora).num_params
    assert estimate(QWEN, train__optimizer=optimizer).parts["optimizer"] == int(each * params)
    assert optimizer_bytes(optimizer, params, 2) == int(each * params)


def test_dora_by_hand() -> None:
    # A magnitude for every output; while it works, the whole weight, the update, the identity that makes it, and the sum in fp32.
    outputs = sum(linear.num_out for linear in QWEN.linears)
    dora = PLAIN.changed({"lora.dora": True})
    assert estimate(QWEN, lora__dora=True).parts["adapter"] - estimate(QWEN).parts["adapter"] == 2 * 28 * outputs
    work = workload_of(QWEN, dora, CARD)
    layer = layer_bytes(QWEN, adapter_of(QWEN, dora.lora), dora.lora, work, rows=1, row_tokens=2048)
    plain = layer_bytes(QWEN, adapter_of(QWEN, PLAIN.lora), PLAIN.lora, work, rows=1, row_tokens=2048)
    assert layer.saved - plain.saved == 2048 * 2 * 2 * outputs
    down = 1536 * 8960
    assert layer.working - plain.working == (2 * down + 8960**2) * 2 + 4 * down


def test_eager_attention_does_not_count_the_mlp_twice() -> None:
    # Scores of 12 heads in fp32 and bf16 are kept; the two fp32 copies of backward come when what the MLP had kept is gone.
    eager = PLAIN.changed({"model.attention": "eager"})
    adapter, square = adapter_of(QWEN, eager.lora), 12 * 2048 * 2048
    layers = [
        layer_bytes(QWEN, adapter, config.lora, workload_of(QWEN, config, CARD), rows=1, row_tokens=2048) for config in (eager, PLAIN)
    ]
    keys_repeated = 2 * 2 * (1536 - 256) * 2048
    assert layers[0].saved - layers[1].saved == 6 * square + keys_repeated
    assert layers[0].working - layers[1].working < 8 * square


def test_an_evaluation_holds_four_tensors_of_the_mlp() -> None:
    work = work_of(QWEN)
    layer = layer_bytes(QWEN, adapter_of(QWEN, PLAIN.lora), PLAIN.lora, work, rows=64, row_tokens=512)
    assert layer.forward_working == 64 * 512 * 2 * (4 * 8960 + 3 * 1536)


def test_the_fast_path_keeps_inner_products_and_small_dense_weights() -> None:
    # Seven targets of rank 16 beside the layer's input; of qkv, o and gate|up 66 MiB stay dense, and down comes on top of them.
    config = RunConfig().changed({"data.max_length": 2048, "train.batch_size": 1, "eval.share": 0})
    work = workload_of(QWEN, config, CARD)
    layer = layer_bytes(QWEN, adapter_of(QWEN, config.lora), config.lora, work, rows=1, row_tokens=2048)
    assert work.is_fast and layer.checkpoint == 2048 * 2 * (1536 + 7 * 16)
    dense = 2 * 1536 * (1536 + 2 * 256 + 1536 + 2 * 8960 + 8960)
    # and the MLP's product with the gradient of the layer's output, which itself is not there.
    assert layer.working == dense + 2048 * 2 * (8960 + 1536)
    assert layer.again == layer.saved


def test_long_rows_hold_a_tile_of_the_mlp() -> None:
    config = RunConfig().changed({"data.max_length": 16384, "train.batch_size": 1, "eval.share": 0})
    work = workload_of(QWEN, config, CARD)
    layer = layer_bytes(QWEN, adapter_of(QWEN, config.lora), config.lora, work, rows=1, row_tokens=16384)
    assert layer.saved - layer.again == 16384 * 2 * 2 * 8960  # gate and up
    in_tile = 2 * 3 * 8960 * (1536 + 2752)  # the matrices, and their products for a sixth of the tokens
    in_attention = 16384 * (2 * 2 * 1536 + 4 * 1536 + 2 * 2 * 1536 + 2 * 2 * 256)  # output, q; q in fp32; keys, values of all heads; of two
    assert layer.working == max(in_tile + 16384 * 2 * 1536, in_attention)


def test_a_chats_cache_by_hand() -> None:
    # 1.5B: 28 layers x 2 key-value heads of 128, keys and values in 16 bits: 28 KiB a token, 128 KiB for Llama 8B.
    assert cache_bytes(QWEN, 1) == 28 * 1024
    llama = facts_from_config({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False})  # fmt: skip
    assert cache_bytes(llama, 4096, num_rows=2) == 2 * 4096 * 128 * 1024


def test_without_an_adapter_on_the_down_projection_three_gradients_of_the_mlp_stand_together() -> None:
    # The product's and those of its two factors; a trained down projection has kept the product, whose place the third takes.
    config = PLAIN.changed({"lora.targets": "q_proj,v_proj", "data.max_length": 8192})
    layer = layer_bytes(QWEN, adapter_of(QWEN, config.lora), config.lora, workload_of(QWEN, config, CARD), rows=1, row_tokens=8192)
    assert layer.working == 3 * 8192 * 2 * 8960


def test_layers_with_norms_behind_are_recomputed_from_their_input_alone() -> None:
    config = RunConfig().changed({"data.max_length": 2048, "train.batch_size": 1, "eval.share": 0})
    work = workload_of(GEMMA3, config, CARD)
    layer = layer_bytes(GEMMA3, adapter_of(GEMMA3, config.lora), config.lora, work, rows=1, row_tokens=2048)
    assert work.is_fast and layer.checkpoint == 2048 * 2 * 1152
