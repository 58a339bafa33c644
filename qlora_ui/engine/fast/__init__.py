"""The fast training step: fused layers, LoRA as one autograd node, packed attention, and a micro-step captured as a CUDA graph.

`apply.apply_fast_path` fuses a PEFT model in place, `captured_step.FastStepMixin` goes in front of `SFTTrainer`. Results are those of
the plain stack within bf16 rounding; where something cannot be fused the reason is reported in words and the plain modules stay.
"""
