"""What is learned of a conversation, against spans marked by hand, for the templates of ten families."""

from __future__ import annotations

import re
from typing import Any

import pytest
from template_families import CLOCK, CLOCK_JSON, FAMILIES, TALK, TIMED, Case, Family, says, user
from template_tools import MARKED, TALK_WITH_TOOLS

from qlora_ui.catalog.templates import TEMPLATES, ChatTemplate, template_named
from qlora_ui.data.rows import Conversation
from qlora_ui.engine.rendering import Renderer
from qlora_ui.engine.tokenizer import stop_token_ids
from qlora_ui.engine.tokens import IGNORED, RowTokenizer, TokenizedRow
from qlora_ui.settings.sections import DataSection


def make_tokenizer(special: tuple[str, ...], eos: str, bos: str | None, template: str | None, *, trim_offsets: bool = False) -> Any:
    """A byte-level tokenizer that merges words, spaces and line breaks, as real ones do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(
        ["user assistant system Hello! See you. Hi Bye Be brief. Twenty to one.\n\n <think>\n </think>\n\n"] * 8, trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, bos_token=bos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


WITH_TOOLS = {
    name: Case("system and tools", TALK_WITH_TOOLS, marked.replace("CLOCK", CLOCK_JSON), (CLOCK,)) for name, marked in MARKED.items()
}
CASES = [
    pytest.param(family, case, id=f"{family.name}: {case.name}") for family in FAMILIES for case in (*family.cases, WITH_TOOLS[family.name])
]


def conversation_of(case: Case) -> Conversation:
    return Conversation.from_dict({"messages": case.messages, "tools": case.tools})


@pytest.mark.parametrize(("family", "case"), CASES)
def test_learned_text_is_the_marked_text(family: Family, case: Case) -> None:
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    rendered = Renderer(tokenizer).rendered(conversation_of(case))
    marked = rendered.text
    for start, end in reversed(rendered.spans):
        marked = f"{marked[:start]}⟦{marked[start:end]}⟧{marked[end:]}"
    assert marked == case.marked


def tokenize_conversation(conversation: Conversation, tokenizer: Any, data: DataSection) -> TokenizedRow:
    """As a run with these settings trains on it."""
    rows = RowTokenizer(tokenizer, data)
    return rows.cut(rows.whole([conversation])[0])


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(("family", "case"), CASES)
def test_learned_tokens_spell_the_marked_text(family: Family, case: Case, trim_offsets: bool) -> None:
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template, trim_offsets=trim_offsets)
    row = tokenize_conversation(conversation_of(case), tokenizer, DataSection(max_length=4096))
    whole = re.sub("[⟦⟧]", "", case.marked)
    assert row.input_ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    runs: list[list[int]] = []
    for before, label in zip([IGNORED, *row.labels], row.labels, strict=False):
        if label != IGNORED:
            if before == IGNORED:
                runs.append([])
            runs[-1].append(label)
    assert [tokenizer.decode(run) for run in runs] == re.findall("⟦(.*?)⟧", case.marked, re.DOTALL)
    assert row.num_trained == sum(map(len, runs))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_ends_a_turn_stops_the_chat(family: Family) -> None:
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    ends = {text[text.rindex("<") :] for text in re.findall("⟦(.*?)⟧", family.cases[0].marked, re.DOTALL)}
    assert {tokenizer.convert_tokens_to_ids(end) for end in ends} <= set(stop_token_ids(tokenizer))


def test_last_answer_and_everything() -> None:
    family = FAMILIES[0]
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    conversation = conversation_of(family.cases[0])
    last = tokenize_conversation(conversation, tokenizer, DataSection(train_on="last-answer"))
    assert tokenizer.decode([label for label in last.labels if label != IGNORED]) == "See you.<|im_end|>"
    everything = tokenize_conversation(conversation, tokenizer, DataSection(train_on="everything"))
    # Nothing comes before the first token, so it is read and not learned.
    assert everything.labels == [IGNORED, *everything.input_ids[1:]] and everything.input_ids == last.input_ids


def test_an_answer_of_weight_zero_is_read_and_not_learned() -> None:
    family = FAMILIES[0]
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    turns = [dict(turn) for turn in family.cases[0].messages]
    next(turn for turn in turns if turn["role"] == "assistant")["weight"] = 0
    row = tokenize_conversation(Conversation.from_dict({"messages": turns}), tokenizer, DataSection())
    whole = tokenize_conversation(conversation_of(family.cases[0]), tokenizer, DataSection())
    assert row.input_ids == whole.input_ids
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "See you.<|im_end|>"


def test_cutting_and_dropping() -> None:
    family = FAMILIES[0]
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    conversation = conversation_of(family.cases[0])
    full = tokenize_conversation(conversation, tokenizer, DataSection())
    cut = tokenize_conversation(conversation, tokenizer, DataSection(max_length=16))
    assert (cut.input_ids, cut.labels) == (full.input_ids[:16], full.labels[:16])
    assert (cut.cut_at, cut.num_tokens) == (16, len(full.input_ids))
    dropped = tokenize_conversation(conversation, tokenizer, DataSection(max_length=16, too_long="drop"))
    assert (dropped.input_ids, dropped.cut_at) == ([], 0)


def test_control_tokens_in_text_can_be_disarmed() -> None:
    family = FAMILIES[0]
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    conversation = Conversation.from_dict(
        {"messages": [{"role": "user", "content": "What is <|im_end|>?"}, {"role": "assistant", "content": "A mark."}]}
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    armed = tokenize_conversation(conversation, tokenizer, DataSection())
    disarmed = tokenize_conversation(conversation, tokenizer, DataSection(neutralize_special_tokens=True))
    assert (armed.input_ids.count(end), disarmed.input_ids.count(end)) == (3, 2)
    assert RowTokenizer(tokenizer, DataSection()).whole([conversation])[0].marks == ("special",)


def test_control_tokens_in_a_call_are_found_and_disarmed() -> None:
    family = FAMILIES[0]
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    call = {"function": {"name": "find", "arguments": {"words": ["What is <|im_end|>?", 2]}}}
    turns = [user("Look it up."), {"role": "assistant", "content": "", "tool_calls": [call]}]
    conversation = Conversation.from_dict({"messages": turns})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for is_disarmed, count in ((False, 3), (True, 2)):
        row = RowTokenizer(tokenizer, DataSection(neutralize_special_tokens=is_disarmed)).whole([conversation])[0]
        assert row.input_ids.tolist().count(end) == count and row.marks == ("special",)
        assert ('["What is < |im_end|>?", 2]' in row.text) == is_disarmed


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_no_built_in_template_has_a_system_prompt_learned_or_lost(template: ChatTemplate) -> None:
    """A role play tells the system prompt and lets the character speak first: Gemma's way had the character say its own instructions."""
    tokenizer = make_tokenizer((template.end, "<s>"), template.end, "<s>", template.jinja)
    told, greets = {"role": "system", "content": "You are a pirate."}, says("Ahoy!")
    more = {"role": "system", "content": "Be brief."}
    for turns in ([told, greets], [told, greets, user("Hi"), says("Aye!")], [told, more, user("Hi"), says("Aye!"), more, says("So.")]):
        rendered = Renderer(tokenizer).rendered(Conversation.from_dict({"messages": turns}))
        learned = [rendered.text[start:end].strip() for start, end in rendered.spans]
        assert learned == [turn["content"] + template.end for turn in turns if turn["role"] == "assistant"]
        places = [rendered.text.find(turn["content"]) for turn in turns if turn is not more]
        assert places == sorted(places) and places[0] > 0
        assert rendered.text.count("Be brief.") == turns.count(more)


def test_plain_text_needs_no_template_and_ends() -> None:
    tokenizer = make_tokenizer(("<s>", "</s>"), "</s>", "<s>", None)
    row = tokenize_conversation(Conversation((), text="Hello! See you."), tokenizer, DataSection())
    assert tokenizer.decode(row.input_ids) == "Hello! See you.</s>"
    assert row.labels == [IGNORED, *row.input_ids[1:]] and row.num_trained == len(row.input_ids) - 1
    doubled = tokenize_conversation(Conversation((), text="<s>Hello! See you."), tokenizer, DataSection())
    assert doubled.input_ids == row.input_ids


# What templates that are in use do with what they do not know: they pass over it without a word.
PASSES_OVER_CALLS = (
    "{% for m in messages %}{% if m.role in ('user', 'system', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if xml_tools %}{{ xml_tools }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS_ONLY = {
    "default": template_named("chatml").jinja,
    "tool_use": (
        "<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}
PASSES_OVER_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
)
CALL = '{"name": "clock", "arguments": {"zone": "UTC"}}'


@pytest.mark.parametrize("has_list", [True, False])
@pytest.mark.parametrize("template", [PASSES_OVER_CALLS, WITH_TOOLS_ONLY], ids=["never", "with a list only"])
def test_a_call_is_learned_where_the_template_passes_over_calls(template: Any, has_list: bool) -> None:
    """An answer without words would be learned in its place: the end of the turn alone."""
    tokenizer = make_tokenizer(("<|im_start|>", "<|im_end|>"), "<|im_end|>", None, template)
    conversation = conversation_of(Case("", TIMED[:4], "", (CLOCK,) if has_list else ()))
    rendered = Renderer(tokenizer).rendered(conversation)
    call, answer = (rendered.text[start:end] for start, end in rendered.spans)
    is_native = has_list and template is WITH_TOOLS_ONLY
    assert call == (f"{CALL}<|im_end|>" if is_native else f"<tool_call>\n{CALL}\n</tool_call><|im_end|>")
    assert answer == "Twenty to one.<|im_end|>"
    assert ('"description": "The time."' in rendered.text) == has_list


def test_a_system_prompt_is_read_where_the_template_passes_over_it() -> None:
    """The template's own words hold letters of any prompt, such as the x of its first token."""
    special = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
    tokenizer = make_tokenizer(special, "<|endoftext|>", "<|endoftext|>", PASSES_OVER_SYSTEM)
    text = Renderer(tokenizer).rendered(conversation_of(Case("", TALK[:3], ""))).text
    assert text == "<|endoftext|><|user|>\nBe brief.\n\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"


MISTRAL_IDS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]"
    "{% for c in m.tool_calls %}{% if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}{{ c.function.name }}:{{ c.id }} {% endfor %}</s>"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}"
    "[TOOL_RESULTS]{{ m.tool_call_id }} {{ m.content }}[/TOOL_RESULTS]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "ids", [("call_abc123xyz", "call_def456uvw"), ("", ""), ("D681PevKs", "a1B2c3D4e")], ids=["OpenAI's", "none", "Mistral's"]
)
def test_a_template_that_demands_short_ids_gets_them(ids: tuple[str, str]) -> None:
    """Rows with the ids of other services, or none, were all refused."""
    tokenizer = make_tokenizer(
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"), "</s>", None, MISTRAL_IDS
    )
    made = [{"function": {"name": name, "arguments": {}}, **({"id": one} if one else {})} for name, one in zip("ab", ids, strict=True)]
    told = [{"role": "tool", "content": name, **({"tool_call_id": one} if one else {})} for name, one in zip("AB", ids, strict=True)]
    turns = [user("?"), {"role": "assistant", "content": "", "tool_calls": made}, *told, says("Done.")]
    text = Renderer(tokenizer).rendered(Conversation.from_dict({"messages": turns})).text
    found = re.findall(r"([abAB])[: ]*(\w{9}) |\[TOOL_RESULTS\](\w{9}) ([AB])", text)
    called = {name: one for name, one, _, _ in found if name}
    answered = {name.lower(): one for _, _, one, name in found if name}
    assert called == answered and len(set(called.values())) == 2
    assert ids[0][:4] == "call" or not ids[0] or called == dict(zip("ab", ids, strict=True))


SYSTEM_IN_A_LAST_QUESTION = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set turns = messages[1:] %}{% else %}"
    "{% set turns = messages %}{% endif %}{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and told is defined %}{{ told }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("num_turns", [3, 5])
def test_a_system_prompt_that_only_a_last_question_gets_is_learned_with_its_answer(num_turns: int) -> None:
    """As Mistral's templates do since v0.3: no finished row had its system prompt, and every chat has."""
    tokenizer = make_tokenizer(("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", SYSTEM_IN_A_LAST_QUESTION)
    renderer = Renderer(tokenizer)
    rendered = renderer.rendered(conversation_of(Case("", TALK[:num_turns], "")))
    start, end = rendered.spans[-1]
    assert rendered.text[:start] == renderer.render(TALK[: num_turns - 1], prompt=True)
    assert [rendered.text[slice(*span)] for span in rendered.spans] == [" Hello!</s>", " See you.</s>"][: num_turns // 2]
    assert rendered.text.count("Be brief.") == 1 and rendered.text[end:] == ""


def test_answers_of_several_tools_are_one_question_where_turns_must_alternate() -> None:
    family = next(family for family in FAMILIES if family.name == "gemma")
    tokenizer = make_tokenizer(family.special, family.eos, family.bos, family.template)
    text = Renderer(tokenizer).rendered(conversation_of(Case("", (*TIMED[:3], TIMED[2], *TIMED[3:]), ""))).text
    result = "<tool_response>\n12:40\n</tool_response>"
    assert f"<start_of_turn>user\n{result}\n{result}<end_of_turn>\n<start_of_turn>model\nTwenty to one.<end_of_turn>" in text
