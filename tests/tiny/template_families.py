# ruff: noqa: E501 (templates and tables read better in one line)
"""Chat templates of ten families, written anew after what their makers document, with conversations and hand-marked answers.

In a marked text, what stands between ⟦ and ⟧ is learned: the assistant's words and the token that ends its turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_ui.catalog.templates import template_named

Turn = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One conversation and its text with marks."""

    name: str
    messages: tuple[Turn, ...]
    marked: str
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Family:
    """A template with the special tokens around it."""

    name: str
    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None
    cases: tuple[Case, ...]


def system(content: str) -> Turn:
    return {"role": "system", "content": content}


def user(content: str) -> Turn:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def calls(name: str, **arguments: Any) -> Turn:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}, "id": "call00001"}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool(content: str) -> Turn:
    return {"role": "tool", "name": "clock", "content": content, "tool_call_id": "call00001"}


CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
CLOCK_JSON = (
    '{"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}'
)
TALK = (system("Be brief."), user("Hi"), says("Hello!"), user("Bye"), says("See you."))
PLAIN = TALK[1:]
TIMED = (user("Late?"), calls("clock", zone="UTC"), tool("12:40"), says("Twenty to one."), user("Thanks"), says("Sure."))

LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}{% set ns.system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' + ns.system + '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}
{%- elif 'tool_calls' in m and m.tool_calls %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' + (m.tool_calls[0].function.arguments | tojson) + '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

# The system prompt stands in the last question, wherever that is: no rendering of a part is a prefix of the whole.
MISTRAL = """{%- if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- for m in turns %}
{%- if m['role'] == 'user' %}
{%- if tools is defined and tools is not none and m == users[-1] %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- if told is defined and m == users[-1] %}{{- '[INST] ' + told + '\n\n' + m['content'] + '[/INST]' }}
{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{% endif %}
{%- elif 'tool_calls' in m and m['tool_calls'] %}
{{- '[TOOL_CALLS] [' }}
{%- for c in m['tool_calls'] %}{{- (c['function'] | tojson) }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ']' + eos_token }}
{%- elif m['role'] == 'tool' %}{{- '[TOOL_RESULTS] ' + m['content'] + '[/TOOL_RESULTS]' }}
{%- elif m['role'] == 'assistant' %}{{- ' ' + m['content'] | trim + eos_token }}
{%- else %}{{ raise_exception('Only user, assistant and tool turns are known.') }}{% endif %}
{%- endfor %}"""

GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

PHI = """{% for m in messages %}
{%- if m['role'] in ('system', 'user', 'assistant') %}{{- '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

QWEN3 = """{%- if tools %}
{{- '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '# Tools\n<tools>' }}{% for t in tools %}{{- '\n' }}{{- t | tojson }}{% endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=messages | length - 1, looking=true) %}
{%- for m in messages[::-1] %}{% set at = messages | length - 1 - loop.index0 %}
{%- if ns.looking and m.role == 'user' and not m.content.startswith('<tool_response>') %}{% set ns.looking = false %}{% set ns.last = at %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set said = m.content %}{% set thought = '' %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}{% set said = said.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
{%- else %}{{- said }}{% endif %}
{%- for c in m.tool_calls or [] %}
{%- if (loop.first and said) or not loop.first %}{{- '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

ZEPHYR = """{% for m in messages %}{{- '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}{% endfor %}"""

# R1's: the prompt opens a thinking block, a finished turn has none, whatever the content held; the last answer is learned behind the prompt.
DEEPSEEK = """{{- bos_token }}{% set ns = namespace(after_tool=false) %}
{%- for m in messages if m.role == 'system' %}{{- m.content }}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}{% set ns.after_tool = false %}
{%- elif m.role == 'tool' %}{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}
{%- set ns.after_tool = true %}
{%- elif m.role == 'assistant' and m.tool_calls %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- for c in m.tool_calls %}{{- '<｜tool▁call▁begin｜>' + c.function.name + '\n' + (c.function.arguments | tojson) + '<｜tool▁call▁end｜>' }}{% endfor %}
{{- '<｜tool▁calls▁end｜>' + eos_token }}
{%- elif m.role == 'assistant' %}
{%- set said = m.content.split('</think>')[-1] if '</think>' in m.content else m.content %}
{{- ('' if ns.after_tool else '<｜Assistant｜>') + said + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.after_tool %}{{- '<｜Assistant｜><think>\n' }}{% endif %}"""

SMOLLM2 = """{% for m in messages %}
{%- if loop.first and m['role'] != 'system' %}{{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

COMMAND_R = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + messages[0]['content'] + '<|END_OF_TURN_TOKEN|>' }}
{%- else %}{% set turns = messages %}{% endif %}
{%- for m in turns %}
{%- if m['role'] == 'user' %}{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif m['role'] == 'assistant' %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

_H = "<|start_header_id|>{}<|end_header_id|>\n\n"
_LLAMA_SYSTEM = _H.format("system") + "Cutting Knowledge Date: December 2023\n\n{}<|eot_id|>"
_SMOL_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
_THOUGHT = (
    user("17 x 6?"),
    says("102.", reasoning_content="10 x 6 is 60, 7 x 6 is 42."),
    user("And 3 more?"),
    says("105.", reasoning_content="102 and 3."),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "chatml",
        template_named("chatml").jinja,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        None,
        (
            Case(
                "system",
                TALK,
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
                "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧\n",
            ),
            Case(
                "speaks first",
                (says("Welcome."), user("Hi"), says("Hello!")),
                "<|im_start|>assistant\n⟦Welcome.<|im_end|>⟧\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
            ),
            Case(
                "tools without a place for them",
                TIMED,
                f"<|im_start|>system\nYou may call these tools:\n{CLOCK_JSON}<|im_end|>\n"
                "<|im_start|>user\nLate?<|im_end|>\n<|im_start|>assistant\n"
                '⟦<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>⟧\n'
                "<|im_start|>user\n<tool_response>\n12:40\n</tool_response><|im_end|>\n"
                "<|im_start|>assistant\n⟦Twenty to one.<|im_end|>⟧\n"
                "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n⟦Sure.<|im_end|>⟧\n",
                (CLOCK,),
            ),
            Case(
                "answers alike",
                (user("Hi"), says("Hi"), user("Hi"), says("Hi")),
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hi<|im_end|>⟧\n" * 2,
            ),
        ),
    ),
    Family(
        "llama-3",
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|begin_of_text|>",
        (
            Case(
                "system",
                TALK,
                f"<|begin_of_text|>{_LLAMA_SYSTEM.format('Be brief.')}{_H.format('user')}Hi<|eot_id|>{_H.format('assistant')}⟦Hello!<|eot_id|>⟧"
                f"{_H.format('user')}Bye<|eot_id|>{_H.format('assistant')}⟦See you.<|eot_id|>⟧",
            ),
            Case(
                "tools, trimmed",
                (user("Late? "), calls("clock", zone="UTC"), tool("12:40"), says(" Twenty to one.\n")),
                f"<|begin_of_text|>{_LLAMA_SYSTEM.format('You may call these tools:' + chr(10) + CLOCK_JSON)}{_H.format('user')}Late?<|eot_id|>"
                f'{_H.format("assistant")}⟦{{"name": "clock", "parameters": {{"zone": "UTC"}}}}<|eot_id|>⟧'
                f"{_H.format('ipython')}12:40<|eot_id|>{_H.format('assistant')}⟦Twenty to one.<|eot_id|>⟧",
                (CLOCK,),
            ),
        ),
    ),
    Family(
        "mistral",
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        "</s>",
        "<s>",
        (
            Case("system", TALK, "<s>[INST] Hi[/INST]⟦ Hello!</s>⟧[INST] Be brief.\n\nBye[/INST]⟦ See you.</s>⟧"),
            Case(
                "tools",
                TIMED,
                '<s>[INST] Late?[/INST]⟦[TOOL_CALLS] [{"name": "clock", "arguments": {"zone": "UTC"}}]</s>⟧'
                f"[TOOL_RESULTS] 12:40[/TOOL_RESULTS]⟦ Twenty to one.</s>⟧[AVAILABLE_TOOLS] [{CLOCK_JSON}][/AVAILABLE_TOOLS]"
                "[INST] Thanks[/INST]⟦ Sure.</s>⟧",
                (CLOCK,),
            ),
        ),
    ),
    Family(
        "gemma",
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<bos>",
        (
            Case(
                "system in the question",
                TALK,
                "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n"
                "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦See you.<end_of_turn>⟧\n",
            ),
        ),
    ),
    Family(
        "phi",
        PHI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
        None,
        (
            Case(
                "system",
                TALK,
                "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello!<|end|>⟧\n"
                "<|user|>\nBye<|end|>\n<|assistant|>\n⟦See you.<|end|>⟧\n<|endoftext|>",
            ),
        ),
    ),
    Family(
        "qwen3",
        QWEN3,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        None,
        (
            Case(
                "thinking: the earlier one is dropped",
                _THOUGHT,
                "<|im_start|>user\n17 x 6?<|im_end|>\n<|im_start|>assistant\n⟦102.<|im_end|>⟧\n"
                "<|im_start|>user\nAnd 3 more?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n102 and 3.\n</think>\n\n105.<|im_end|>⟧\n",
            ),
            Case(
                "system, no thinking",
                TALK,
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
                "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nSee you.<|im_end|>⟧\n",
            ),
            Case(
                "tools and thinking",
                (
                    user("Late?"),
                    {**calls("clock", zone="UTC"), "reasoning_content": "I need the clock."},
                    tool("12:40"),
                    says("Twenty to one.", reasoning_content="12:40 it is."),
                    user("Thanks"),
                    says("Sure."),
                ),
                f"<|im_start|>system\n# Tools\n<tools>\n{CLOCK_JSON}\n</tools><|im_end|>\n<|im_start|>user\nLate?<|im_end|>\n"
                '<|im_start|>assistant\n⟦<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>⟧\n'
                "<|im_start|>user\n<tool_response>\n12:40\n</tool_response><|im_end|>\n<|im_start|>assistant\n⟦Twenty to one.<|im_end|>⟧\n"
                "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nSure.<|im_end|>⟧\n",
                (CLOCK,),
            ),
            Case(
                "thinking written into the text",
                (user("17 x 6?"), says("<think>\n10 x 6 is 60.\n</think>\n\n102."), user("Sure?"), says("<think>\nYes.\n</think>\n\nYes.")),
                "<|im_start|>user\n17 x 6?<|im_end|>\n<|im_start|>assistant\n⟦102.<|im_end|>⟧\n"
                "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nYes.\n</think>\n\nYes.<|im_end|>⟧\n",
            ),
        ),
    ),
    Family(
        "zephyr",
        ZEPHYR,
        ("<s>", "</s>", "<unk>"),
        "</s>",
        "<s>",
        (
            Case(
                "system",
                TALK,
                "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n⟦Hello!</s>⟧\n<|user|>\nBye</s>\n<|assistant|>\n⟦See you.</s>⟧\n",
            ),
        ),
    ),
    Family(
        "deepseek",
        DEEPSEEK,
        (
            "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
            "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
        ),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        (
            Case(
                "system",
                TALK,
                "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜>⟦Hello!<｜end▁of▁sentence｜>⟧"
                "<｜User｜>Bye<｜Assistant｜><think>\n⟦\n</think>\n\nSee you.<｜end▁of▁sentence｜>⟧",
            ),
            Case(
                "thinking dropped, answer like a tag",
                (user("17 x 6?"), says("<think>\n60 and 42.\n</think>102."), user("A tag?"), says("<thing>")),
                "<｜begin▁of▁sentence｜><｜User｜>17 x 6?<｜Assistant｜>⟦102.<｜end▁of▁sentence｜>⟧<｜User｜>A tag?<｜Assistant｜><think>\n⟦\n</think>\n\n<thing><｜end▁of▁sentence｜>⟧",
            ),
            Case(
                "the last thought is kept behind the prompt",
                _THOUGHT,
                "<｜begin▁of▁sentence｜><｜User｜>17 x 6?<｜Assistant｜>⟦\n\n102.<｜end▁of▁sentence｜>⟧"
                "<｜User｜>And 3 more?<｜Assistant｜><think>\n⟦102 and 3.\n</think>\n\n105.<｜end▁of▁sentence｜>⟧",
            ),
            Case(
                "tools",
                TIMED,
                "<｜begin▁of▁sentence｜>You may call these tools:\n" + CLOCK_JSON + "<｜User｜>Late?<｜Assistant｜>"
                '⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock\n{"zone": "UTC"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧'
                "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>12:40<｜tool▁output▁end｜><｜tool▁outputs▁end｜>⟦Twenty to one.<｜end▁of▁sentence｜>⟧"
                "<｜User｜>Thanks<｜Assistant｜><think>\n⟦\n</think>\n\nSure.<｜end▁of▁sentence｜>⟧",
                (CLOCK,),
            ),
        ),
    ),
    Family(
        "smollm2",
        SMOLLM2,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        "<|im_start|>",
        (
            Case(
                "default system prompt",
                PLAIN,
                f"{_SMOL_SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
                "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧\n",
            ),
            Case(
                "speaks first",
                (says("Welcome."), user("Hi"), says("Hello!")),
                f"{_SMOL_SYSTEM}<|im_start|>assistant\n⟦Welcome.<|im_end|>⟧\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
            ),
        ),
    ),
    Family(
        "command-r",
        COMMAND_R,
        (
            "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
        ),
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        (
            Case(
                "system",
                TALK,
                "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
                "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦Hello!<|END_OF_TURN_TOKEN|>⟧"
                "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦See you.<|END_OF_TURN_TOKEN|>⟧",
            ),
        ),
    ),
)  # fmt: skip
