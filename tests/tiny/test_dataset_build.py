"""The dataset of a run: what the preview shows is the trainer's batch; the split, the receipt, the files, the lint."""

from __future__ import annotations

import json
import random
import re
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_ui.base.errors import DataError
from qlora_ui.base.files import read_json, sha256_of
from qlora_ui.base.progress import Cancelled
from qlora_ui.data.load import load_conversations
from qlora_ui.data.rows import Conversation, Message
from qlora_ui.engine.dataset import build_datasets
from qlora_ui.engine.lens import Lens
from qlora_ui.engine.preview import preview_row
from qlora_ui.engine.token_table import TokenTable
from qlora_ui.engine.tokenizer import load_tokenizer
from qlora_ui.engine.tokens import IGNORED, tokenize_all
from qlora_ui.estimate.duration import estimate_duration
from qlora_ui.hardware.devices import cpu_profile
from qlora_ui.models.architecture import builtin_facts
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.intervals import intervals
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import DataSection
from qlora_ui.ui.draft import data_shape

WORDS = [
    "tide",
    "moon",
    "harbour",
    "lantern",
    "copper",
    "meadow",
    "granite",
    "winter",
    "orchard",
    "signal",
    "bridge",
    "river",
    "<|im_end|>",
    "é",
    "日本",
    "🙂",
    "\n\n",
    "",
    "x",
]


def write_rows(path: Path, count: int, seed: int = 0) -> str:
    """Random conversations of one to four turns, odd letters and control tokens among them; some far too long."""
    chance = random.Random(seed)
    lines = []
    for number in range(count):
        turns = [{"role": "system", "content": "Be brief."}] if chance.random() < 0.3 else []
        for _ in range(chance.randint(1, 4)):
            length = chance.choice([3, 8, 20, 60])
            turns.append({"role": "user", "content": f"{number} {' '.join(chance.choices(WORDS, k=length))}?"})
            turns.append({"role": "assistant", "content": " ".join(chance.choices(WORDS, k=chance.randint(1, 30)))})
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def config_for(source: str, model: Path, **changes: Any) -> RunConfig:
    return RunConfig().changed({"data.sources": [source], "model.id": str(model), "data.max_length": 96, **changes})


def test_the_preview_is_the_trainers_batch(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    config = config_for(write_rows(tmp_path / "rows.jsonl", 600), tiny_model_dir, **{"eval.share": 0})
    tokenizer = load_tokenizer(tiny_model_dir)
    train = build_datasets(config, workspace, tokenizer).train
    conversations = load_conversations(config.data, workspace).conversations
    previews = [preview_row(conversation, tokenizer, config.data) for conversation in conversations]
    used = [preview for preview in previews if preview.num_trained]
    assert len(used) == len(train) and 200 <= len(used) < 600
    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    chosen = random.Random(1).sample(range(len(train)), 200)
    for start in range(0, 200, 8):
        some = chosen[start : start + 8]
        batch = collate([train[row] for row in some])
        for line, row in enumerate(some):
            preview = used[row]
            kept = int(batch["attention_mask"][line].sum())
            assert batch["input_ids"][line, :kept].tolist() == list(preview.input_ids)
            assert batch["labels"][line, :kept].tolist() == list(preview.labels)
            assert set(batch["labels"][line, kept:].tolist()) <= {IGNORED}
            shown = [token for token in preview.tokens if not token.is_cut]
            assert [token.id for token in shown] == list(preview.input_ids)
            assert [token.is_trained for token in shown] == [label != IGNORED for label in preview.labels]
    for preview in previews:
        assert "".join(token.text for token in preview.tokens) == preview.text
        assert preview.num_kept == min(preview.num_tokens, 96) and (preview.cut_at == 96) == (preview.num_tokens > 96)


def test_split_and_receipt_and_files(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    from datasets import load_dataset

    config = config_for(write_rows(tmp_path / "rows.jsonl", 120), tiny_model_dir, **{"eval.share": 0.1})
    tokenizer = load_tokenizer(tiny_model_dir)
    run = RunDir(workspace.runs / "one")
    built = build_datasets(config, workspace, tokenizer, run)
    receipt = built.receipt
    assert built.eval is not None
    assert receipt.num_rows == 120 == receipt.num_train_rows + receipt.num_eval_rows + receipt.num_dropped
    assert receipt.num_eval_rows == len(built.eval) == round((120 - receipt.num_dropped) * 0.1)
    assert receipt.num_trained_tokens == sum(label != IGNORED for row in built.train["labels"] for label in row)
    assert read_json(run.data / "receipt.json") == json.loads(json.dumps(receipt.as_dict()))
    assert receipt.files == {name: sha256_of(run.data / name) for name in receipt.files} and len(receipt.files) == 4
    files = {"train": str(run.data / "train.tokens.parquet"), "eval": str(run.data / "eval.tokens.parquet")}
    again = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert again["train"].to_list() == built.train.to_list() and again["eval"].to_list() == built.eval.to_list()
    assert len((run.data / "train.jsonl").read_text(encoding="utf-8").splitlines()) == receipt.num_train_rows
    same = build_datasets(config, Workspace.at(tmp_path / "other"), tokenizer)
    assert same.train.to_list() == built.train.to_list()
    other = build_datasets(config.changed({"train.seed": 7}), workspace, tokenizer)
    assert other.eval is not None and other.eval.to_list() != built.eval.to_list()


def test_a_double_is_not_both_trained_on_and_held_back(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    rows = Path(write_rows(tmp_path / "rows.jsonl", 40)).read_text(encoding="utf-8").splitlines()
    path = tmp_path / "doubled.jsonl"
    path.write_text("\n".join(rows[:20] * 2 + rows[20:]) + "\n", encoding="utf-8")
    built = build_datasets(config_for(str(path), tiny_model_dir, **{"eval.share": 0.2}), workspace, load_tokenizer(tiny_model_dir))
    assert built.eval is not None
    trained = {tuple(row) for row in built.train["input_ids"]}
    assert not trained & {tuple(row) for row in built.eval["input_ids"]}


def test_rows_that_a_weight_repeats_are_held_back_together(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    many, few = tmp_path / "many.jsonl", tmp_path / "few.jsonl"
    for path, count in ((many, 100), (few, 20)):
        path.write_text("".join(json.dumps({"prompt": f"{path.stem} {n}", "completion": "Yes."}) + "\n" for n in range(count)), "utf-8")
    config = RunConfig().changed({"data.sources": [{"id": str(many), "weight": 2}, str(few)], "model.id": str(tiny_model_dir)})
    tokenizer, held = load_tokenizer(tiny_model_dir), 0
    for seed in range(5):
        built = build_datasets(config.changed({"eval.share": 0.1, "train.seed": seed}), workspace, tokenizer)
        assert built.eval is not None and len(built.eval) == 22
        trained, checked = ({tuple(row) for row in part["input_ids"]} for part in (built.train, built.eval))
        # One place may be left where every small group is taken.
        assert len(trained & checked) <= 1
        held += sum("many" in tokenizer.decode(row) for row in built.eval["input_ids"])
    assert held > 5 * 22 / 2  # They are ten in eleven rows; only rows that occur once were held back before.


def test_a_talk_and_its_continuation_are_not_parted(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    """As in files that have a row for each answer of a talk, with all that was said before it."""
    path, tokenizer = tmp_path / "talks.jsonl", load_tokenizer(tiny_model_dir)
    # As a row of its own, what many talks begin with must not keep them all from being checked.
    lines = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]]
    for talk in range(20):
        turns = list(lines[0]) if talk < 10 else []
        for turn in range(3):
            turns = [*turns, {"role": "user", "content": f"Talk {talk}, {turn}?"}, {"role": "assistant", "content": f"{talk}-{turn}"}]
            lines.append(turns)
    path.write_text("\n".join(json.dumps({"messages": turns}) for turns in lines), encoding="utf-8")
    held_talks = set()
    for seed in range(4):
        config = config_for(str(path), tiny_model_dir, **{"eval.share": 0.1, "train.seed": seed, "data.max_length": 512})
        built = build_datasets(config, workspace, tokenizer)
        assert built.eval is not None and len(built.eval) == 6
        train, held = (
            {name for row in part["input_ids"] for name in re.findall(r"Talk (\d+)", tokenizer.decode(row))}
            for part in (built.train, built.eval)
        )
        # The last places may be fewer than the rows of any talk that is left.
        assert len(train & held) <= 1 and len(held) <= 3
        held_talks |= held
    assert any(int(talk) < 10 for talk in held_talks)


def test_rows_of_another_parser_are_not_taken_for_those_that_were_tokenized(
    tiny_model_dir: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, data = load_tokenizer(tiny_model_dir), DataSection()

    def tokens(answer: str) -> list[int]:
        rows = [Conversation((Message("user", "q"), Message("assistant", answer)))]
        return tokenize_all(rows, tokenizer, data, content_hash="that of the file", workspace=workspace).ids.tolist()

    before = tokens("binary data")
    assert tokens("what the file says") == before
    monkeypatch.setattr("qlora_ui.engine.tokens.PARSER_VERSION", 0, raising=False)
    assert tokens("what the file says") != before


def test_a_template_that_writes_the_date_is_counted_anew_on_another_day(
    tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, today = config_for(write_rows(tmp_path / "rows.jsonl", 8), tiny_model_dir, **{"eval.share": 0}), date.today()
    tokenizer = load_tokenizer(tiny_model_dir)
    plain = build_datasets(config, workspace, tokenizer, day=today - timedelta(1)).train
    assert build_datasets(config, workspace, tokenizer).train.to_list() == plain.to_list()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + tokenizer.chat_template

    def first(**named: Any) -> list[int]:
        row: list[int] = build_datasets(config, workspace, tokenizer, **named).train[0]["input_ids"]
        return row

    assert tokenizer.decode(first(day=date(2024, 2, 29))).startswith("29 Feb 2024 ")
    assert tokenizer.decode(first()).startswith(today.strftime("%d %b %Y "))
    monkeypatch.setattr("qlora_ui.engine.tokens.RowTokenizer", None)
    assert tokenizer.decode(first(day=date(2024, 2, 29))).startswith("29 Feb 2024 ")


def test_the_counts_of_an_open_page_are_of_the_day(
    tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "dated"))
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }} " + template, encoding="utf-8")
    config, lens = config_for(write_rows(tmp_path / "rows.jsonl", 8), model), Lens(workspace)

    class Day(date):
        now = date(2026, 5, 9)

        @classmethod
        def today(cls) -> Day:
            return cls(cls.now.year, cls.now.month, cls.now.day)

    for name in ("lens", "tokens"):
        monkeypatch.setattr(f"qlora_ui.engine.{name}.date", Day)
    counts = []
    for day in (date(2026, 5, 9), date(2026, 9, 10)):
        Day.now = day
        preview = lens.preview(config, 0)
        assert preview.text.startswith(day.strftime("%d %B %Y "))
        assert preview.num_tokens == int(lens.look(config).table.lengths[0])
        counts.append(preview.num_tokens)
    assert counts[1] > counts[0]


def test_dropping_instead_of_cutting(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 60), tiny_model_dir, **{"data.too_long": "drop"})
    built = build_datasets(config, workspace, load_tokenizer(tiny_model_dir))
    assert built.receipt.num_too_long > 0 and built.receipt.num_truncated == 0
    assert max(map(len, built.train["input_ids"])) <= 96


def test_control_tokens_are_those_of_the_model(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    texts = ["Good day, said the fox, and [INST] left </s>.", "The sea <|im_end|> is wide.", "The end stands where it belongs.<|im_end|>"]
    path, lens = tmp_path / "texts.jsonl", Lens(workspace)
    for rows, numbers in (
        ([{"text": text} for text in texts], (2,)),
        ([{"prompt": f"Say: {texts[0]}", "completion": "Good day."}], ()),
        ([{"messages": [{"role": "assistant", "content": "", "reasoning_content": text}]} for text in texts], (2, 3)),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for is_disarmed in (False, True):
            config = config_for(str(path), tiny_model_dir, **{"data.neutralize_special_tokens": is_disarmed})
            told = [(found.rows, found.severity) for found in lens.report(config).findings if found.code == "DATA-SPECIAL"]
            assert told == ([(numbers, "note" if is_disarmed else "warning")] if numbers else [])
            inside = [sum(token.is_special for token in lens.preview(config, number - 1).tokens) for number in numbers]
            assert all(count == (1 if "text" in rows[0] else 2) + (not is_disarmed) for count in inside)


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_what_is_told_of_long_rows_is_what_is_trained(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, too_long: str) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 60), tiny_model_dir, **{"data.too_long": too_long, "eval.share": 0})
    report = Lens(workspace).report(config)
    receipt = build_datasets(config, workspace, load_tokenizer(tiny_model_dir)).receipt
    told = report.tokens or {}
    assert (told["kept"], told["trained"]) == (receipt.num_train_tokens, receipt.num_trained_tokens)
    assert told["trained_share"] == pytest.approx(receipt.num_trained_tokens / receipt.num_train_tokens, abs=1e-4)
    # No answer breaks off where the whole row is left out.
    is_cut = {"DATA-ANSWER-CUT", "DATA-ANSWER-LOST"} <= {finding.code for finding in report.findings}
    assert is_cut == (told["answers_cut"] > 0) == (too_long == "cut")


def test_nothing_left_is_an_error_before_any_model_is_loaded(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    row = {"prompt": "word " * 60, "completion": "Yes."}
    path.write_text((json.dumps(row) + "\n") * 12, encoding="utf-8")
    with pytest.raises(DataError, match="100 %") as refused:
        build_datasets(config_for(str(path), tiny_model_dir, **{"data.max_length": 16}), workspace, load_tokenizer(tiny_model_dir))
    assert refused.value.code == "DATA-LABEL"


def test_no_answer_and_an_answer_that_is_cut_away_are_two_things(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    question = {"role": "user", "content": "Hello"}
    chats = [[question, {"role": "assistant", "content": f"Yes {n}."}] for n in range(10)]
    chats += [[question], [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "Yes."}]]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    config = config_for(str(path), tiny_model_dir, **{"data.max_length": 48})
    findings = {finding.code: finding for finding in Lens(workspace).report(config).findings}
    without, lost = findings["DATA-LABEL"], findings["DATA-ANSWER-LOST"]
    assert (without.rows, without.fix_action) == ((11,), {"action": "drop", "code": "DATA-LABEL"}) and "no answer" in without.what
    assert lost.rows == (12,) and "1 of 12 rows (8 %) loses its whole answer at 48 tokens" in lost.what
    assert (lost.fix_action or {})["path"] == "data.max_length"


def test_plain_text_and_every_source_at_once(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("\n\n".join(f"Paragraph {n} about the sea.\nIt has two lines." for n in range(12)), encoding="utf-8")
    sources = [str(notes), "builtin:plain-pirate", {"id": write_rows(tmp_path / "rows.jsonl", 20), "weight": 0.5}]
    config = RunConfig().changed({"data.sources": sources, "model.id": str(tiny_model_dir)})
    built = build_datasets(config, workspace, load_tokenizer(tiny_model_dir))
    assert built.receipt.num_rows == 12 + 120 + 10
    assert [source["format"] for source in built.receipt.sources] == ["text", "messages", "messages"]


def test_cancel_while_tokenizing(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 1200), tiny_model_dir)
    load_conversations(config.data, workspace)
    with pytest.raises(Cancelled):
        build_datasets(
            config, workspace, load_tokenizer(tiny_model_dir), on_progress=_stop_when_tokenized, is_cancelled=lambda: bool(_seen)
        )
    assert not list((workspace.cache).glob("tokens/*"))


_seen: list[str] = []


def _stop_when_tokenized(what: str, share: float | None) -> None:
    if what.startswith("Tokenized"):
        _seen.append(what)


def test_a_lens_counts_previews_and_fixes(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 120), tiny_model_dir)
    lens = Lens(workspace)
    report = lens.report(config)
    findings = {finding.code: finding for finding in report.findings}
    tokens = report.tokens
    assert tokens is not None and report.verdict == "look"
    assert sum(tokens["histogram"]["counts"]) == 120 and tokens["longest"] > 96 and tokens["proposed_max_length"] % 64 == 0
    assert findings["DATA-TRUNCATED"].count == tokens["truncated"] > tokens["without_answer"] > 0
    assert {"DATA-ANSWER-LOST", "DATA-ANSWER-CUT", "DATA-SPECIAL"} <= set(findings)
    worst = lens.worst(config)
    assert sorted(worst) == list(range(120))
    first = lens.preview(config, worst[0])
    assert first.num_trained == 0 and not first.trains_end
    assert lens.preview(config, worst[-1]).trains_end
    with pytest.raises(DataError):
        lens.preview(config, 120)

    dropped = config.changed(lens.fix(config, findings["DATA-TRUNCATED"].fix_action | {"action": "drop", "code": "DATA-TRUNCATED"}))  # type: ignore[operator]
    codes = {finding.code for finding in lens.report(dropped).findings}
    assert not codes & {"DATA-TRUNCATED", "DATA-ANSWER-LOST", "DATA-ANSWER-CUT"}
    assert lens.report(dropped).num_rows == 120 - findings["DATA-TRUNCATED"].count
    both = [{"action": "drop", "code": code} for code in ("DATA-TRUNCATED", "DATA-SPECIAL")]
    clean = config.changed(lens.fix(config, {"action": "drop-all", "of": both}))
    assert not {finding.code for finding in lens.report(clean).findings} & {"DATA-TRUNCATED", "DATA-SPECIAL"}
    raised = config.changed(lens.fix(config, findings["DATA-ANSWER-LOST"].fix_action or {}))
    assert raised.data.max_length > 96 and "DATA-ANSWER-LOST" not in {finding.code for finding in lens.report(raised).findings}
    disarmed = config.changed(lens.fix(config, findings["DATA-SPECIAL"].fix_action or {}))
    assert {f.code: f.severity for f in lens.report(disarmed).findings}["DATA-SPECIAL"] == "note"


# Writes the thought of the last answer alone, no words beside a call, and of several calls the first.
_LEAVES_OUT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_a_template_leaves_out_of_answers_is_told(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    (model / "chat_template.jinja").write_text(_LEAVES_OUT)
    ask, call = {"role": "user", "content": "?"}, {"function": {"name": "clock", "arguments": {}}}
    rows = [
        [
            ask,
            {"role": "assistant", "content": "One.", "thinking": "Why one"},
            ask,
            {"role": "assistant", "content": "2", "thinking": "so"},
        ],
        [ask, {"role": "assistant", "content": "One."}, ask, {"role": "assistant", "content": "Two.", "thinking": "Why two"}],
        [ask, {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}],
        [ask, {"role": "assistant", "content": "", "tool_calls": [call, {"function": {"name": "map", "arguments": {}}}]}],
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    lens, config = Lens(workspace), config_for(str(tmp_path / "rows.jsonl"), model)

    def told(config: RunConfig) -> dict[str, tuple[int, ...]]:
        return {found.code: found.rows for found in lens.report(config).findings if found.code.startswith("TPL-")}

    assert told(config) == {"TPL-THOUGHT": (1,), "TPL-WORDS": (3,), "TPL-CALL": (4,)}
    finding = next(found for found in lens.report(config).findings if found.code == "TPL-THOUGHT")
    last = config.changed(lens.fix(config, finding.fix_action or {}))
    assert "TPL-THOUGHT" not in told(last) and "so\n</think>" in lens.preview(last, 0).text
    assert told(config.changed({"model.template": "chatml"})) == {}


def test_no_longer_conversation_is_proposed_than_the_model_was_made_for(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": "word " * length} for n, length in enumerate((8, 8, 5000))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_for(str(tmp_path / "rows.jsonl"), tiny_model_dir)
    context = 2048
    lens = Lens(workspace)

    def found(length: int) -> dict[str, tuple[str, object]]:
        report = lens.report(config.changed({"data.max_length": length}))
        assert report.tokens is not None and report.tokens["proposed_max_length"] <= context
        return {found.code: (found.fix, found.fix_action) for found in report.findings}

    raised = {"action": "set", "path": "data.max_length", "value": context}
    short, whole, beyond = found(96), found(context), found(32768)
    assert short["DATA-ANSWER-CUT"][1] == short["DATA-TRUNCATED"][1] == raised
    # At the model's own limit nothing is left to raise.
    assert whole["DATA-ANSWER-CUT"] == (
        "No more than 2048 tokens can be learned from at once: divide the rows, or drop them.",
        {"action": "drop", "code": "DATA-ANSWER-CUT"},
    )
    assert beyond["DATA-CONTEXT"] == ("Cut conversations at 2048 tokens, or divide them.", raised)
    assert not {"DATA-TRUNCATED", "DATA-CONTEXT"} <= set(beyond) and "DATA-CONTEXT" not in whole | short


def test_tokens_are_kept_by_content(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 60), tiny_model_dir)
    tokenizer = load_tokenizer(tiny_model_dir)
    first = build_datasets(config, workspace, tokenizer)
    monkeypatch.setattr("qlora_ui.engine.tokens.RowTokenizer", None)
    again = build_datasets(config.changed({"data.max_length": 128}), workspace, tokenizer)
    assert np.array_equal(again.train[0]["input_ids"][:96], first.train[0]["input_ids"])
    with pytest.raises(TypeError):
        build_datasets(config.changed({"data.train_on": "everything"}), workspace, tokenizer)


def test_an_empty_slice_is_told_and_breaks_nothing(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path) -> None:
    source = {"id": write_rows(tmp_path / "rows.jsonl", 12), "rows": "50-60"}
    config = RunConfig().changed({"data.sources": [source], "model.id": str(tiny_model_dir)})
    report = Lens(workspace).report(config)
    assert report.verdict == "not-trainable" and report.num_rows == 0
    with pytest.raises(DataError, match="slice"):
        build_datasets(config, workspace, load_tokenizer(tiny_model_dir))


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_the_estimate_counts_the_rows_that_the_job_uses(tiny_model_dir: Path, workspace: Workspace, tmp_path: Path, too_long: str) -> None:
    config = config_for(write_rows(tmp_path / "rows.jsonl", 120), tiny_model_dir, **{"data.too_long": too_long, "train.batch_size": 1})
    shape = data_shape(Lens(workspace).report(config))
    built = build_datasets(config, workspace, load_tokenizer(tiny_model_dir))
    receipt = built.receipt
    assert shape is not None and receipt.num_dropped > 20
    assert shape.num_rows == receipt.num_train_rows + receipt.num_eval_rows
    tokens = receipt.num_train_tokens + receipt.num_eval_tokens
    assert shape.mean_tokens == pytest.approx(tokens / shape.num_rows, abs=0.1)
    assert shape.longest_tokens is not None and min(shape.longest_tokens, 96) == receipt.longest_tokens
    duration = estimate_duration(builtin_facts(), config, cpu_profile(workspace), shape.num_rows, shape.mean_tokens)
    assert duration.num_steps == intervals(config, receipt.num_train_rows, receipt.num_eval_rows).num_steps


@pytest.mark.parametrize(
    ("name", "damage"), [("ids.npy", b"\x93NUMPY"), ("ids.npy", b""), ("notes.json", b'{"refused": {}}'), ("notes.json", b"[]")]
)
def test_a_damaged_table_of_tokens_makes_room_for_the_one_made_anew(tmp_path: Path, name: str, damage: bytes) -> None:
    ids, folder = np.arange(4, dtype=np.int32), tmp_path / "table"
    table = TokenTable(ids, np.ones(4, dtype=bool), np.array([0, 2, 4]), {}, {})
    table.save(folder)
    (folder / name).write_bytes(damage)
    assert TokenTable.load(folder) is None
    table.save(folder)
    again = TokenTable.load(folder)
    assert again is not None and again.ids.tolist() == ids.tolist()
