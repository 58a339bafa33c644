"""The quality receipt against an independent evaluation, and the pieces that it is made of."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from talk import write_adapter

from qlora_ui.base.errors import QloraUiError, RunError
from qlora_ui.base.files import read_json, sha256_of, write_json
from qlora_ui.base.progress import Cancelled
from qlora_ui.catalog.metrics import applicable, bootstrap, exact_match, is_valid_json, label_scores, rouge_l, without_thinking
from qlora_ui.cli import main
from qlora_ui.cli.evaluate import _text
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.chat import ChatService
from qlora_ui.engine.chat_model import ChatModel
from qlora_ui.engine.comparison import compare_answers, load_sides, score_text
from qlora_ui.engine.dataset import build_datasets
from qlora_ui.engine.evaluate import _held_back, evaluate_run
from qlora_ui.engine.evaluate_answers import Answered, are_as_labels, last_words, question_of, task_scores
from qlora_ui.engine.evaluate_options import EvaluateOptions
from qlora_ui.engine.evaluate_scores import EvalRow, score_rows
from qlora_ui.engine.evaluate_verdict import verdict
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.engine.tokens import RowTokenizer
from qlora_ui.runs.card import Card
from qlora_ui.runs.chat_target import ChatTarget
from qlora_ui.runs.comparison import Question
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sampling import Sampling


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunDir]:
    """A run with rows and an adapter, without the training between them."""
    workspace = Workspace.at(tmp_path_factory.mktemp("evaluate"))
    config = RunConfig().changed({"model.id": str(tiny_model_dir), "launch.device": "cpu", "data.max_length": 96, "eval.share": 0.1})
    run = create_run(workspace, config)
    build_datasets(config, workspace, load_tokenizer(tiny_model_dir), run)
    write_adapter(run.adapter, tiny_model_dir, 1)
    return workspace, run


@pytest.fixture(scope="module")
def receipt(run: tuple[Workspace, RunDir]) -> dict[str, Any]:
    seen: list[tuple[str, float | None]] = []
    options = EvaluateOptions(num_answers=3, max_tokens=8)
    result = evaluate_run(run[1].id, run[0], Card(), options, on_progress=lambda what, share: seen.append((what, share)))
    assert any("row 1 of" in what for what, _ in seen) and max(share or 0 for _, share in seen) == 1.0
    # The bar goes on while answers are given, which takes longest on a processor, and never back.
    shares = [share for what, share in seen if ": row " in what or what.startswith("Answering")]
    assert None not in shares and shares == sorted(share or 0 for share in shares)
    assert next(what for what, _ in seen if what.startswith("Answering")).startswith("Answering question 1 of")
    return result


def independent(run: RunDir, kind: str, model_dir: Path) -> tuple[float, float]:
    """Twenty lines of plain transformers and peft: (loss, accuracy) over all learned tokens."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    four = {"quantization_config": bnb} if kind in ("base-4bit", "adapter-4bit", "merged-dequantized") else {}
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, device_map={"": "cpu"}, **four)
    if kind == "merged-dequantized":
        model = model.dequantize()
    if kind not in ("base-full", "base-4bit"):
        model = PeftModel.from_pretrained(model, run.adapter)
    if kind.startswith("merged"):
        model = model.merge_and_unload()
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    total, right, count = 0.0, 0, 0
    for row in pq.read_table(run.data / "eval.tokens.parquet").to_pylist():
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"])[1:]
        keep = labels != -100
        total += torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="sum").item()
        right += int((logits[keep].argmax(-1) == labels[keep]).sum())
        count += int(keep.sum())
    return total / count, right / count


@pytest.mark.parametrize("kind", ["base-full", "base-4bit", "adapter-4bit", "merged-original", "merged-dequantized"])
def test_numbers_equal_an_independent_evaluation(
    kind: str, receipt: dict[str, Any], run: tuple[Workspace, RunDir], tiny_model_dir: Path
) -> None:
    loss, accuracy = independent(run[1], kind, tiny_model_dir)
    score = next(row for row in receipt["scores"] if row["variant"] == kind)
    assert score["loss"] == pytest.approx(loss, abs=1e-4)
    assert score["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert score["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_a_row_with_many_learned_tokens_is_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # All logits of 4,096 tokens and 128k words are 7 GiB: a card that had trained on such rows could not be used to evaluate.
    asked: list[int] = []

    def model(input_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor) -> Any:
        asked.append(len(logits_to_keep))
        generator = torch.Generator().manual_seed(int(input_ids.sum()))
        return SimpleNamespace(logits=torch.randn(1, input_ids.shape[1], 50, generator=generator)[:, logits_to_keep])

    rows = [EvalRow(ids, ids) for ids in ([1, 2, 3, 4, 5, 6, 7], [3, 9], [4, 4, 4, 8])]
    whole = score_rows(model, rows, torch.device("cpu"))
    monkeypatch.setattr("qlora_ui.engine.evaluate_scores.MOST_PLACES", 2)
    asked.clear()
    parts = score_rows(model, rows, torch.device("cpu"))
    assert asked == [2, 2, 2, 1, 2, 1]
    assert (
        parts.nll == pytest.approx(whole.nll) and parts.num_right == whole.num_right and parts.num_tokens == whole.num_tokens == [6, 1, 3]
    )
    assert parts.agreement(whole) == 1.0 and parts.logits_NV is not None and torch.equal(parts.logits_NV, whole.logits_NV)
    # A card that trained has no room for the logits of an evaluation: fewer at once, and the same numbers.
    monkeypatch.setattr("qlora_ui.engine.evaluate_scores.MOST_PLACES", 8)
    monkeypatch.setattr("qlora_ui.engine.evaluate_scores.FEWEST_PLACES", 2)

    def small(input_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor) -> Any:
        if len(logits_to_keep) > room:
            raise torch.OutOfMemoryError
        return model(input_ids, use_cache, logits_to_keep)

    room = 2
    fewer = score_rows(small, rows, torch.device("cpu"))
    assert fewer.nll == pytest.approx(whole.nll) and torch.equal(fewer.choices_N, whole.choices_N)
    room = 1
    with pytest.raises(torch.OutOfMemoryError):
        score_rows(small, rows, torch.device("cpu"))


def test_receipt_says_how_the_forms_agree(receipt: dict[str, Any], run: tuple[Workspace, RunDir]) -> None:
    agreement = receipt["agreement"]["adapter-4bit"]
    assert agreement["adapter-4bit"] == 1.0 and agreement["merged-dequantized"] > 0.99
    difference = receipt["logit_difference"]
    assert difference["merged-dequantized"]["max"] < 1e-3 < difference["merged-original"]["max"]
    losses = {row["variant"]: row["loss"] for row in receipt["scores"]}
    assert receipt["gain"]["value"] == pytest.approx(losses["base-4bit"] - losses["adapter-4bit"], abs=1e-9)
    assert receipt["gain"]["low"] <= receipt["gain"]["value"] <= receipt["gain"]["high"]
    assert len(receipt["answers"]) == 3 and receipt["answers"][0]["base"] != receipt["answers"][0]["adapter"]
    # Their references are longer than the eight tokens that an answer may have: what is cut is shown and not measured.
    assert all(set(answer["cut"]) == {"base", "adapter"} and not answer["is_measured"] for answer in receipt["answers"])
    assert receipt["tasks"] == [] and receipt["verdict"]["text"].startswith("4-bit cost")
    assert receipt["adapter_sha256"] == sha256_of(run[1].adapter / "adapter_model.safetensors")
    # Its age counts from its end.
    assert run[1].evaluation_path.stat().st_mtime - receipt["time"] < receipt["duration_s"] / 2
    assert read_json(run[1].evaluation_path) == json.loads(json.dumps(receipt))


def test_rows_are_taken_from_all_over_the_held_back_ones(run: tuple[Workspace, RunDir]) -> None:
    # In the order of the data, which may be sorted: the first ones would be of one kind.
    rows, conversations, num_held_back = _held_back(run[1], 4)
    lines = (run[1].data / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = pq.read_table(run[1].data / "eval.tokens.parquet")["input_ids"].to_pylist()
    assert num_held_back == len(lines) == 12
    assert [list(row.ids) for row in rows] == [tokens[place] for place in (0, 3, 6, 9)]
    assert [one.as_line() for one in conversations] == [lines[place] for place in (0, 3, 6, 9)]
    assert len(_held_back(run[1], 200)[0]) == 12


def test_evaluation_can_be_stopped_and_needs_rows(run: tuple[Workspace, RunDir], tiny_model_dir: Path) -> None:
    card = Card()
    with pytest.raises(Cancelled):
        evaluate_run(run[1].id, run[0], card, is_cancelled=lambda: True)
    assert card.holder() is None
    bare = create_run(run[0], run[1].config())
    write_adapter(bare.adapter, tiny_model_dir, 1)
    with pytest.raises(RunError, match="held back"):
        evaluate_run(bare.id, run[0], card)
    with card.hold("training", "x"), pytest.raises(RunError, match="training run"):
        evaluate_run(run[1].id, run[0], card)


def test_a_run_that_is_deleted_meanwhile_stays_deleted(run: tuple[Workspace, RunDir], tiny_model_dir: Path) -> None:
    workspace, other = run
    doomed = create_run(workspace, other.config())
    shutil.copytree(other.data, doomed.data)
    write_adapter(doomed.adapter, tiny_model_dir, 1)

    def delete(what: str, share: float | None) -> None:
        if ": row 1 of" in what:
            shutil.rmtree(doomed.path)

    options = EvaluateOptions(num_answers=0, max_rows=1, variants=("base-4bit",))
    with pytest.raises(Cancelled):
        evaluate_run(doomed.id, workspace, Card(), options, on_progress=delete)
    assert not doomed.path.exists()


def test_a_paused_run_is_judged_by_its_newest_checkpoint_and_a_replaced_base_is_told_of(
    run: tuple[Workspace, RunDir], tiny_model_dir: Path
) -> None:
    workspace, other = run
    paused = create_run(workspace, other.config())
    shutil.copytree(other.data, paused.data)
    for step in (2, 10):
        write_adapter(paused.checkpoints / f"checkpoint-{step}", tiny_model_dir, step)
    options = EvaluateOptions(num_answers=0, max_rows=1, variants=("base-4bit",))
    result = evaluate_run(paused.id, workspace, Card(), options)
    newest = paused.checkpoints / "checkpoint-10"
    assert result["checkpoint"] == newest.name and result["adapter_sha256"] == sha256_of(newest / "adapter_model.safetensors")
    assert result["warning"] == ""
    write_json(newest / "manifest.json", {"files": {}, "notes": {"weights_mark": "of others"}})
    assert "was replaced since" in evaluate_run(paused.id, workspace, Card(), options)["warning"]


def test_an_idle_chat_makes_room(run: tuple[Workspace, RunDir]) -> None:
    card = Card()
    chat = ChatService(run[0], card)
    chat.load(ChatTarget(run_id=run[1].id))
    options = EvaluateOptions(num_answers=0, max_rows=1, variants=("base-4bit",))
    assert [row["variant"] for row in evaluate_run(run[1].id, run[0], card, options)["scores"]] == ["base-4bit"]
    assert chat.loaded() is None and card.holder() is None
    chat.close()


def test_what_does_not_fit_is_skipped_in_words(run: tuple[Workspace, RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr("qlora_ui.engine.evaluate_models.psutil.virtual_memory", lambda: free)
    result = evaluate_run(run[1].id, run[0], Card(), EvaluateOptions(num_answers=0, max_rows=2))
    skipped = {row["variant"]: row["skipped"] for row in result["scores"] if "skipped" in row}
    assert set(skipped) == {"base-full", "merged-original", "merged-dequantized"}
    assert "are free" in skipped["base-full"] and result["num_rows"] == 2


def test_command_line(run: tuple[Workspace, RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--run", run[1].id, "--max-rows", "2", "--answers", "0", "--workspace", str(run[0].root)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["scores"]) == 5 and "Adapter on 4-bit" in _text(result)
    chat = ["chat", "--run", run[1].id, "--prompt", "hello", "--max-tokens", "5", "--temperature", "0", "--workspace", str(run[0].root)]
    assert main([*chat, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"answer", "base_answer", "tokens_per_s"}
    assert main(["chat", "--json", "--workspace", str(run[0].root)]) == 2


def test_tokens_of_a_text(run: tuple[Workspace, RunDir]) -> None:
    service = ChatService(run[0], Card())
    service.load(ChatTarget(run_id=run[1].id))
    text = "hello world, how are you — today?"
    base, adapter = score_text(service, text)
    assert "".join(token.text for token in base.tokens) == text and base.tokens[0].logprob is None
    assert base.perplexity != adapter.perplexity
    logprobs = [token.logprob for token in base.tokens if token.logprob is not None]
    assert base.perplexity == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)))
    assert all((token.rank == 1) == (token.instead == token.text) for token in base.tokens[1:] if token.text.isascii())
    answer = score_text(service, "hello", ("base",), [Message("user", "hi")])[0]
    assert answer.tokens[0].logprob is not None
    with pytest.raises(QloraUiError):
        score_text(service, " ")
    service.close()


def test_answers_side_by_side_with_another_adapter_of_the_base(run: tuple[Workspace, RunDir], tiny_model_dir: Path) -> None:
    write_adapter(run[1].checkpoints / "checkpoint-2", tiny_model_dir, 9)
    write_json(run[1].checkpoints / "checkpoint-2" / "manifest.json", {"notes": {"weights_mark": "of others"}})
    service = ChatService(run[0], Card())
    target = ChatTarget(run_id=run[1].id)
    assert service.load(target).warning == ""
    sides = load_sides(service, target, ChatTarget(run_id=run[1].id, checkpoint="checkpoint-2"))
    assert sides[:2] == ("base", "adapter") and len(sides) == 3
    assert "was replaced since" in service.warning  # of the one beside
    asked = [Question("hello world", reference="how"), Question("how are you", system="be kind")]
    sampling = Sampling(temperature=0, max_tokens=6)
    # One that is too long for the model does not keep the others from being answered.
    too_long, *rows = compare_answers(service, target, [Question("hello " * 3000), *asked], sampling, sides)
    assert "this model reads at most 2,048" in too_long.problem and not any(row.problem for row in rows)
    assert [row.question for row in rows] == asked and all(set(row.answers) == set(sides) for row in rows)
    # Each answer is the chat's own, and its tokens were the likeliest of the side that gave it.
    alone = "".join(delta.text for delta in service.stream([Message("user", "hello world")], sampling, ("adapter",)))
    assert rows[0].answers["adapter"] == alone
    for side in sides:
        said = rows[0].answers[side]
        assert "".join(score.text for score in rows[0].scores[side]) == (said if said.strip() else "")
    # Somebody who talks to another adapter meanwhile would have given the answers.
    going = compare_answers(service, target, asked, sampling)
    next(going)
    service.load(ChatTarget(run_id=run[1].id, checkpoint="checkpoint-2"))
    with pytest.raises(QloraUiError, match="needed the model"):
        next(going)
    service.close()


def test_a_row_with_tools_or_thinking_is_asked_as_it_was_trained(run: tuple[Workspace, RunDir]) -> None:
    # Without its tools it was another question; rows that end in a call were not asked at all; thinking was cut.
    call = {"function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    asked = (Message("system", "Be brief."), Message("user", "Late?"))
    calls = Conversation((*asked, Message("assistant", "", tool_calls=(call,))), tools=({"function": {"name": "clock"}},))
    told = replace(calls, messages=(*calls.messages, Message("tool", "12:40"), Message("assistant", "No.", thinking="It is noon.")))
    wrong = replace(told, messages=(*told.messages, Message("user", "Sure?"), Message("assistant", "Yes.", is_learned=False)))
    assert question_of(calls) == calls and question_of(told) == question_of(wrong) == told
    assert question_of(Conversation((Message("assistant", "Hi."),))) is None is question_of(Conversation((), text="plain"))
    assert last_words(told.messages[:-1]) == "Late?\n12:40"
    model = ChatModel.load(run[1].config(), run[0])
    rows = RowTokenizer(model.tokenizer, run[1].config().data).whole([calls, told])
    for one, row in zip((calls, told), rows, strict=True):
        whole = model.prompt_ids(one.messages[:-1], one.tools) + model.answer_ids(one)
        assert whole == row.input_ids.tolist()[: len(whole)] and len(row.input_ids) - len(whole) <= 1  # the line break behind the end
        assert "clock" in model.tokenizer.decode(whole)
    model.free()
    said = [Answered("", "<think>\n1\n</think>\n\nyes", "no", f"<think>\n{number}\n</think>\n\nYes.") for number in range(6)]
    assert {task["metric"]: task["adapter"]["value"] for task in task_scores(said)} == {"exact_match": 1.0, "rouge_l": 1.0}


def test_metrics_on_text() -> None:
    assert exact_match(" Paris. ", "paris") == 1 and exact_match('{"a": 1}', '{ "a":1 }') == 1 and exact_match("a", "b") == 0
    assert rouge_l("the cat sat on the mat", "the cat lay on the mat") == pytest.approx(5 / 6)
    assert rouge_l("", "") == 1 and rouge_l("a", "") == 0
    # Scripts without spaces, and answers without a word: any of the second kind counted as equal.
    assert rouge_l("今天天气很好", "今天天气不好") == pytest.approx(5 / 6)
    assert [rouge_l(said, "👍") for said in ("🏳", "", "👍")] == [0, 0, 1]
    assert [without_thinking(text) for text in ("<think>a</think>\n\nb", "<think>a", "c")] == ["b", "", "c"]
    assert is_valid_json('```json\n{"a": 1}\n```') and not is_valid_json("3") and not is_valid_json("{")
    scores = label_scores(["pos", "neg", "neg", "what"], ["pos", "pos", "neg", "neg"])
    assert scores["matrix"] == [[1, 0, 1], [1, 1, 0]] and scores["labels"] == ["neg", "pos", "(other)"]
    assert scores["f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert applicable(["pos", "neg"] * 5) == ["label_f1", "exact_match"]
    assert applicable(['{"a": 1}'] * 5) == ["json_validity", "exact_match"]
    assert applicable([f"a long and free answer, different every time, number {n}, with many words" for n in range(5)]) == ["rouge_l"]


def test_bootstrap_covers_the_mean() -> None:
    estimate = bootstrap([1.0, 2.0, 3.0, 4.0] * 10)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < estimate.value == 2.5 < estimate.high and bootstrap([1.0, 3.0], [3, 1]).value == 1.5


def test_an_answer_may_be_as_long_as_its_reference() -> None:
    # With 96 tokens for all, every answer of a longer JSON was cut: “Valid JSON 0 %” for base and adapter.
    assert [EvaluateOptions().longest_answer(needed) for needed in (3, 200, 4000)] == [96, 250, 512]
    assert EvaluateOptions(max_tokens=8).longest_answer(200) == 8
    # Of labels more are asked, which takes no longer.
    labels = EvaluateOptions()
    assert labels.num_asked(are_labels=True) * labels.longest_answer(3, is_among_labels=True) == 16 * 96 == 64 * 24
    assert labels.longest_answer(200, is_among_labels=True) == 250 and EvaluateOptions(num_answers=3).num_asked(are_labels=True) == 3
    assert are_as_labels([2] * 19 + [300]) and not are_as_labels([2] * 16 + [17] * 4) and not are_as_labels([])


def test_verdicts() -> None:
    losses = {"base-full": 2.0, "base-4bit": 2.03, "adapter-4bit": 1.6, "merged-original": 1.7, "merged-dequantized": 1.6}
    good = verdict(losses, bootstrap([0.43] * 6), bootstrap([0.03] * 6), 6)
    assert good["kind"] == "better" and good["serve"] == "merged-dequantized"
    assert "0.03 nats a token higher" in good["text"] and "0.43 nats a token lower" in good["text"]
    assert verdict(losses, bootstrap([-0.4] * 6), None, 6)["kind"] == "worse"
    # Fewer passes do not help an adapter on another base.
    advised = [verdict(losses, bootstrap([-0.4] * 6), None, 6, is_replaced=replaced)["text"] for replaced in (False, True)]
    assert advised[0].endswith(": try an earlier checkpoint or fewer passes.") and advised[1].endswith("0.40).")
    assert verdict(losses, bootstrap([-0.4, 0.5]), None, 2)["kind"] == "unsure"
    assert verdict({**losses, "merged-dequantized": 2.0}, None, None, 2)["serve"] == "adapter-4bit"
    assert verdict({**losses, "merged-original": 1.2}, None, None, 2)["serve"] == "merged-original"


def test_what_does_not_fit_in_one_piece_is_read_layer_by_layer(
    run: tuple[Workspace, RunDir], receipt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_ui.engine.evaluate_models.UnquantizedModels.fits", lambda self, variant: False)
    seen: list[str] = []
    shares: list[float] = []

    def tell(what: str, share: float | None) -> None:
        seen.append(what)
        shares.extend([share] if share is not None and (" row " in what or " layer " in what) else [])

    result = evaluate_run(run[1].id, run[0], Card(), EvaluateOptions(num_answers=0), on_progress=tell)
    assert any("layer 1 of 2" in what for what in seen)
    assert shares == sorted(shares)  # never back
    whole = {row["variant"]: row["loss"] for row in receipt["scores"]}
    for row in result["scores"]:
        assert row.get("by_layer", False) == (row["variant"] not in ("base-4bit", "adapter-4bit"))
        assert row["loss"] == pytest.approx(whole[row["variant"]], abs=1e-4)
    assert result["logit_difference"]["merged-dequantized"]["max"] < 1e-3


def test_an_export_that_memory_is_too_short_to_check_is_kept(
    run: tuple[Workspace, RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_ui.engine.exports import check, export

    with monkeypatch.context() as patch:
        patch.setattr(check, "_run_child", lambda *arguments: check.SHORT_OF_MEMORY)
        kept = export.export_run(run[1], "merged-original", run[0], tmp_path / "killed", num_prompts=2)
    assert kept.check is None and "too little free memory" in kept.note and (kept.path / "model.safetensors").is_file()
    monkeypatch.setattr(export, "plan_export", lambda *arguments: export.ExportPlan(1, 1, 1, 2**60))
    kept = export.export_run(run[1], "merged-original", run[0], tmp_path / "short", num_prompts=2)
    assert kept.check is None and "are free" in kept.note
