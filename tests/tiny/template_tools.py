# ruff: noqa: E501 (templates read better in one line)
"""A talk of several turns with system prompt, tool call and tool answer as each of ten families writes it, answers marked by hand.

What stands between ⟦ and ⟧ is learned. `CLOCK` stands for the tool's schema in JSON.
"""

from __future__ import annotations

from template_families import Turn, calls, says, system, tool, user

TALK_WITH_TOOLS: tuple[Turn, ...] = (
    system("Be brief."), user("Late?"), calls("clock", zone="UTC"), tool("12:40"), says("Twenty to one."), user("Thanks"), says("Sure."),
)  # fmt: skip

MARKED: dict[str, str] = {
    "chatml": (
        "<|im_start|>system\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<|im_end|>\n"
        "<|im_start|>user\n"
        "Late?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|im_end|>⟧\n"
        "<|im_start|>user\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦Twenty to one.<|im_end|>⟧\n"
        "<|im_start|>user\n"
        "Thanks<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦Sure.<|im_end|>⟧\n"
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n"
        "\n"
        "Cutting Knowledge Date: December 2023\n"
        "\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
        "\n"
        "Late?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
        "\n"
        '⟦{"name": "clock", "parameters": {"zone": "UTC"}}<|eot_id|>⟧<|start_header_id|>ipython<|end_header_id|>\n'
        "\n"
        "12:40<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
        "\n"
        "⟦Twenty to one.<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n"
        "\n"
        "Thanks<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
        "\n"
        "⟦Sure.<|eot_id|>⟧"
    ),
    "mistral": (
        '<s>[INST] Late?[/INST]⟦[TOOL_CALLS] [{"name": "clock", "arguments": {"zone": "UTC"}}]</s>⟧[TOOL_RESULTS] 12:40[/TOOL_RESULTS]⟦ Twenty to one.</s>⟧[AVAILABLE_TOOLS] [CLOCK][/AVAILABLE_TOOLS][INST] Be brief.\n'
        "\n"
        "Thanks[/INST]⟦ Sure.</s>⟧"
    ),
    "gemma": (
        "<bos><start_of_turn>user\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK\n"
        "\n"
        "Late?<end_of_turn>\n"
        "<start_of_turn>model\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><end_of_turn>⟧\n"
        "<start_of_turn>user\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response><end_of_turn>\n"
        "<start_of_turn>model\n"
        "⟦Twenty to one.<end_of_turn>⟧\n"
        "<start_of_turn>user\n"
        "Thanks<end_of_turn>\n"
        "<start_of_turn>model\n"
        "⟦Sure.<end_of_turn>⟧\n"
    ),
    "phi": (
        "<|system|>\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<|end|>\n"
        "<|user|>\n"
        "Late?<|end|>\n"
        "<|assistant|>\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|end|>⟧\n"
        "<|user|>\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response><|end|>\n"
        "<|assistant|>\n"
        "⟦Twenty to one.<|end|>⟧\n"
        "<|user|>\n"
        "Thanks<|end|>\n"
        "<|assistant|>\n"
        "⟦Sure.<|end|>⟧\n"
        "<|endoftext|>"
    ),
    "qwen3": (
        "<|im_start|>system\n"
        "Be brief.\n"
        "\n"
        "# Tools\n"
        "<tools>\n"
        "CLOCK\n"
        "</tools><|im_end|>\n"
        "<|im_start|>user\n"
        "Late?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|im_end|>⟧\n"
        "<|im_start|>user\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦Twenty to one.<|im_end|>⟧\n"
        "<|im_start|>user\n"
        "Thanks<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦<think>\n"
        "\n"
        "</think>\n"
        "\n"
        "Sure.<|im_end|>⟧\n"
    ),
    "zephyr": (
        "<|system|>\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK</s>\n"
        "<|user|>\n"
        "Late?</s>\n"
        "<|assistant|>\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call></s>⟧\n"
        "<|user|>\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response></s>\n"
        "<|assistant|>\n"
        "⟦Twenty to one.</s>⟧\n"
        "<|user|>\n"
        "Thanks</s>\n"
        "<|assistant|>\n"
        "⟦Sure.</s>⟧\n"
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<｜User｜>Late?<｜Assistant｜>⟦<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock\n"
        '{"zone": "UTC"}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>⟧<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>12:40<｜tool▁output▁end｜><｜tool▁outputs▁end｜>⟦Twenty to one.<｜end▁of▁sentence｜>⟧<｜User｜>Thanks<｜Assistant｜><think>\n⟦\n</think>\n\nSure.<｜end▁of▁sentence｜>⟧'
    ),
    "smollm2": (
        "<|im_start|>system\n"
        "Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<|im_end|>\n"
        "<|im_start|>user\n"
        "Late?<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|im_end|>⟧\n"
        "<|im_start|>user\n"
        "<tool_response>\n"
        "12:40\n"
        "</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦Twenty to one.<|im_end|>⟧\n"
        "<|im_start|>user\n"
        "Thanks<|im_end|>\n"
        "<|im_start|>assistant\n"
        "⟦Sure.<|im_end|>⟧\n"
    ),
    "command-r": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.\n"
        "\n"
        "You may call these tools:\n"
        "CLOCK<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Late?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦<tool_call>\n"
        '{"name": "clock", "arguments": {"zone": "UTC"}}\n'
        "</tool_call><|END_OF_TURN_TOKEN|>⟧<|START_OF_TURN_TOKEN|><|USER_TOKEN|><tool_response>\n"
        "12:40\n"
        "</tool_response><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦Twenty to one.<|END_OF_TURN_TOKEN|>⟧<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Thanks<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦Sure.<|END_OF_TURN_TOKEN|>⟧"
    ),
}
