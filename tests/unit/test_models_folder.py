"""What a model folder is refused for, and what is read from one that is good."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from model_files import CONFIG, model_files, safetensors_bytes, write_model

from qlora_ui.base.errors import ModelError
from qlora_ui.models import builtin
from qlora_ui.models.catalogue import find_model_folder, is_hub_id, list_models, model_facts, needs_download
from qlora_ui.models.facts import ModelFacts
from qlora_ui.models.folder import MAX_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, read_folder
from qlora_ui.models.known import KNOWN_CONFIGS
from qlora_ui.models.weights_mark import weights_mark
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.sections import BUILTIN_MODEL


def test_a_good_folder_is_read_to_the_parameter(tmp_path: Path) -> None:
    found = read_folder(write_model(tmp_path / "m"))
    assert found.stored_params == found.num_params == 64 * 16 + 2304 + 48
    assert found.stored_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    assert (found.licence, found.has_chat_template) == ("apache-2.0", True)


def test_a_model_with_an_output_layer_of_its_own_is_read(tmp_path: Path) -> None:
    weights = safetensors_bytes(**{"embed": (64, 16), "layer": (2304,), "norms": (3, 16), "lm_head.weight": (64, 16)})
    folder = write_model(tmp_path, model_files(tie_word_embeddings=False) | {"model.safetensors": weights})
    assert read_folder(folder).stored_params == 2 * 64 * 16 + 2304 + 48


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("---\nlicense: llama3.1\n---\n", "llama3.1"),
        ('---\nlicense: other\nlicense_name: "tongyi"\n---\n', "tongyi"),
        ("license: mit\n", ""),
        ("---\ntitle: x\n---\n", ""),
    ],
)
def test_the_licence_is_the_cards(tmp_path: Path, front: str, licence: str) -> None:
    assert read_folder(write_model(tmp_path, model_files() | {"README.md": front.encode()})).licence == licence


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_bytes(json.dumps(CONFIG | changes).encode()) and None


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text.encode()) and None


def _adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-4B"}', encoding="utf-8")


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _huge_tokenizer(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(3 * MAX_TOKENIZER_BYTES)


def _missing_shard(folder: Path) -> None:
    shard = safetensors_bytes(a=(2, 2))
    (folder / "model-00001-of-00002.safetensors").write_bytes(shard)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_bytes(json.dumps({"weight_map": names}).encode())


def _few_weights(folder: Path) -> None:
    """As weights are that were packed into 4 bits, and of which config.json says nothing."""
    packed = safetensors_bytes(embed=(64, 16), qweight=(288,), norms=(3, 16))
    (folder / "model.safetensors").write_bytes(packed)


def _missing_shard_and_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")


def _index_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_bytes(json.dumps({"weight_map": {"a": "../x.safetensors"}}).encode())


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        (_config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), "model-code", "auto_map"),
        (_config(_attn_implementation_internal="someone/kernel"), "model-code", "_attn_implementation_internal"),
        (_config(inner={"deep": [{"auto_map": {}}]}), "model-code", "auto_map"),
        (_text("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'), "model-code", "tokenizer_config.json"),
        (_config(quantization_config={"quant_method": "gptq"}), "model-quantized", "gptq"),
        (_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "model-quantized", "bitsandbytes"),
        (_config(quantization={"group_size": 64, "bits": 4}), "model-quantized", "4-bit"),
        (_config(quantization_config="int8"), "model-quantized", "int8"),
        (_config(architectures=["LlamaModel"]), "model-no-text", "LlamaModel"),
        (_config(tie_word_embeddings=False), "model-no-text", "lm_head.weight"),
        (_config(model_type="banana"), "model-unsupported", "banana"),
        (_config(model_type="mixtral", num_local_experts=8), "model-moe", "8"),
        (_config(hidden_size="16"), "model-config", "hidden_size"),
        (_text("config.json", "{"), "model-config", "config.json"),
        (_text("config.json", "[" * 5000), "model-config", "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "model-missing", "config.json"),
        (_adapter, "model-adapter", "It belongs to Qwen/Qwen3-4B."),
        (_pickle_only, "model-pickle", "pytorch_model.bin"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model-weights", "no weights"),
        (_missing_shard, "model-shards", "model-00002-of-00002"),
        (_missing_shard_and_index, "model-shards", "model-00003-of-00003"),
        (_index_outside, "model-config", "../x.safetensors"),
        (_few_weights, "model-partial", "1,360 of 3,376 numbers"),
        (_cut, "model-corrupt", "model.safetensors"),
        (_text("model.safetensors", "x" * 100), "model-corrupt", "header"),
        (_text("model.safetensors", ""), "model-corrupt", "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "model-tokenizer", "tokenizer"),
        (_huge_tokenizer, "model-tokenizer", "300 MiB"),
        (_text("chat_template.jinja", "x" * (MAX_TEMPLATE_BYTES + 1)), "model-tokenizer", "built-in chat template"),
    ],
)
def test_what_is_refused_says_why(tmp_path: Path, break_it: Callable[[Path], object], code: str, says: str) -> None:
    folder = write_model(tmp_path / "broken-model")
    break_it(folder)
    with pytest.raises(ModelError) as caught:
        read_folder(folder)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)


def test_planted_code_is_never_imported(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = model_files(auto_map={"AutoConfig": "modeling_x.X"}) | {"modeling_x.py": f"open({str(canary)!r}, 'w')".encode()}
    with pytest.raises(ModelError):
        read_folder(write_model(tmp_path / "m", files))
    assert not canary.exists()


def test_a_model_in_the_list_is_read_again_only_where_its_folder_changed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(workspace.root / "hub"))
    read: list[str] = []

    def counted(folder: Path) -> ModelFacts:
        read.append(folder.name)
        return read_folder(folder)

    monkeypatch.setattr("qlora_ui.models.catalogue.read_folder", counted)
    mine = write_model(workspace.models / "mine")
    write_model(workspace.models / "torn", {"config.json": json.dumps(CONFIG).encode()})
    first = list_models(workspace)
    assert list_models(workspace) == first and read == ["mine", "torn", "torn"]
    (mine / "README.md").write_text("---\nlicense: mit\n---\n")
    facts = list_models(workspace)[1].facts
    assert facts is not None and facts.licence == "mit"
    (mine / "model.safetensors").unlink()
    assert list_models(workspace)[1].problem


def test_the_list_has_the_builtin_first_and_tells_what_is_wrong(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_model(workspace.models / "mine")
    write_model(workspace.models / "torn", {"config.json": json.dumps(CONFIG).encode()})
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    write_model(snapshot)
    (tmp_path / "hub" / "models--some--model" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--model" / "refs" / "main").write_bytes(b"abc")
    entries = list_models(workspace)
    assert [(entry.kind, entry.title, bool(entry.problem)) for entry in entries[1:]] == [
        ("folder", "mine", False),
        ("folder", "torn", True),
        ("hub", "some/model", False),
    ]
    (snapshot / "model.safetensors").unlink()
    last = list_models(workspace)[-1]
    assert last.is_begun and last.problem.startswith("The folder some/model holds no weights")
    assert needs_download("some/model", None, workspace) and not needs_download(str(workspace.models / "mine"), None, workspace)
    assert entries[0].id == BUILTIN_MODEL
    assert find_model_folder("some/model", None, workspace) == snapshot
    assert find_model_folder("some/model", "abc", workspace) == snapshot
    assert find_model_folder("some/model", "../..", workspace) is None
    assert find_model_folder("other/model", None, workspace) is None


def test_facts_before_anything_is_on_the_disk(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    facts = model_facts(BUILTIN_MODEL, None, workspace)
    assert facts is not None and facts.num_params == 134_515_008
    assert model_facts("nobody/nothing", None, workspace) is None
    published = {"meta-llama/Llama-3.1-8B-Instruct": 8.030, "microsoft/phi-4": 14.660, "Qwen/Qwen2.5-32B-Instruct": 32.764}
    for model_id, billions in published.items():
        known = model_facts(model_id, None, workspace)
        assert known is not None and known.num_params / 1e9 == pytest.approx(billions, abs=0.001)
    assert all(model_facts(model_id, None, workspace) for model_id in KNOWN_CONFIGS)
    with pytest.raises(ModelError):
        model_facts("/no/such/folder", None, workspace)
    with pytest.raises(ModelError):
        model_facts("", None, workspace)


def test_a_folder_wins_over_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("some/model")
    write_model(tmp_path / "some" / "model")
    assert not is_hub_id("some/model")
    assert not is_hub_id("C:\\models\\x") and not is_hub_id("../x/y") and not is_hub_id("name")


def test_a_torn_conversion_is_not_taken_for_a_model(workspace: Workspace) -> None:
    folder = builtin.converted_folder(workspace)
    assert not builtin.is_converted(workspace)
    write_model(folder)
    (folder / builtin.MANIFEST).write_bytes(
        json.dumps({"gguf_sha256": builtin.GGUF_SHA256, "files": {"model.safetensors": {"bytes": 1, "sha256": "0"}}}).encode()
    )
    assert not builtin.is_converted(workspace)
    size = (folder / "model.safetensors").stat().st_size
    (folder / builtin.MANIFEST).write_bytes(
        json.dumps({"gguf_sha256": builtin.GGUF_SHA256, "files": {"model.safetensors": {"bytes": size, "sha256": "0"}}}).encode()
    )
    assert builtin.is_converted(workspace)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("https://huggingface.co/Qwen/Qwen3-4B/tree/main", "by its name alone: Qwen/Qwen3-4B."),
        ('"/models/mine"', "without quotation marks"),
        ("gpt2", "OWNER/NAME"),
        (__file__, "choose the folder that it is in"),
    ],
)
def test_a_path_that_is_none_says_what_to_write(workspace: Workspace, typed: str, says: str) -> None:
    with pytest.raises(ModelError, match=re.escape(says)):
        model_facts(typed, None, workspace)


def test_weights_are_known_again_in_other_files_and_others_of_the_same_shapes_are_not(tmp_path: Path) -> None:
    files = model_files()
    one = write_model(tmp_path / "one", files)
    weights = files["model.safetensors"]
    replaced = write_model(tmp_path / "replaced", {**files, "model.safetensors": weights[:-3000] + bytes([1]) * 3000})
    other_card = write_model(tmp_path / "card", {**files, "README.md": b"Other words"})
    shards = {
        "model-00001-of-00002.safetensors": {"embed": (64, 16)},
        "model-00002-of-00002.safetensors": {"layer": (2304,), "norms": (3, 16)},
    }
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    rest = {name: content for name, content in files.items() if name != "model.safetensors"}
    parts = {name: safetensors_bytes(**tensors) for name, tensors in shards.items()}
    sharded = write_model(tmp_path / "sharded", {**rest, **parts, "model.safetensors.index.json": json.dumps(index).encode()})
    assert weights_mark(one) == weights_mark(other_card) == weights_mark(sharded) != weights_mark(replaced)
