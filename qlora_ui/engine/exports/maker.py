"""What makes each form of export from an adapter and its base."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qlora_ui.base.progress import IsCancelled, OnProgress
from qlora_ui.engine.exports.adapter import clean_tokenizer, copy_adapter
from qlora_ui.engine.exports.card import write_card
from qlora_ui.models.catalogue import tuned_name
from qlora_ui.runs.held_back import shared_system
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

DEQUANTIZED = ("merged-dequantized", "gguf-f16", "gguf-q8_0", "ollama")
"""Forms made on the weights that were trained with, so that they answer as the chat does."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes one form of a run in the folder `out`, with `work` for what is needed on the way."""

    run: RunDir
    adapter: Path
    step: int | None
    """Of the checkpoint that the adapter is of; None for the finished one."""
    config: RunConfig
    base: Path
    workspace: Workspace
    out: Path
    work: Path
    on_cpu: bool
    on_progress: OnProgress
    is_cancelled: IsCancelled

    @property
    def name(self) -> str:
        """A name for the file inside, from the base's."""
        return tuned_name(self.config.model.id)

    def make(self, form: str) -> tuple[str, ...]:
        """Make it; returns what its user should know, in sentences."""
        if form == "adapter":
            copy_adapter(self.adapter, self.config.model.id, self.out)
            write_card(self.out, self.run, self.base, form, self.step)
        elif form.startswith("merged-"):
            self._merged(self.out, form)
        elif form == "gguf-lora":
            self._gguf_lora()
        else:
            self._gguf("q8_0" if form == "ollama" else form.removeprefix("gguf-"))
            if form == "ollama":
                return self._modelfile()
        return ()

    def _merged(self, folder: Path, form: str, *, for_gguf: bool = False) -> None:
        import torch

        from qlora_ui.engine.exports.merge import merge

        dequantized = form in DEQUANTIZED
        merge(
            self.base,
            self.adapter,
            folder,
            self.config,
            dequantized=dequantized,
            # What becomes GGUF is f16 or made from it: fp16 keeps three bits more of a sum than bf16 does.
            dtype=torch.float16 if for_gguf else torch.bfloat16,
            on_cpu=self.on_cpu,
            on_progress=self.on_progress,
            is_cancelled=self.is_cancelled,
        )
        clean_tokenizer(folder)
        write_card(folder, self.run, self.base, form, self.step)

    def _gguf(self, outtype: str) -> None:
        from qlora_ui.engine.exports.begin import adds_a_begin, leave_out_begin
        from qlora_ui.engine.exports.llama_cpp import convert_model, converter
        from qlora_ui.engine.exports.stops import name_turn_end

        tool = converter(self.workspace, self.on_progress, self.is_cancelled)
        self._merged(self.work / self.name, "merged-dequantized", for_gguf=True)
        name_turn_end(self.work / self.name)
        target = self.out / f"{self.name}-{outtype}.gguf"
        convert_model(
            tool,
            self.work / self.name,
            target,
            outtype=outtype,
            name=self.name,
            on_progress=self.on_progress,
            is_cancelled=self.is_cancelled,
        )
        if adds_a_begin(self.work / self.name):
            leave_out_begin(target)
        shutil.rmtree(self.work)

    def _gguf_lora(self) -> None:
        from qlora_ui.engine.exports.llama_cpp import convert_lora, converter
        from qlora_ui.engine.exports.lora import write_plain_alpha

        tool = converter(self.workspace, self.on_progress, self.is_cancelled)
        # The converter writes the folder's name and what the card says of the base into the file.
        folder = self.work / self.name
        copy_adapter(self.adapter, self.config.model.id, folder)
        write_plain_alpha(folder)
        write_card(folder, self.run, self.base, "adapter", self.step)
        target = self.out / f"{self.name}-lora-f16.gguf"
        convert_lora(tool, folder, target, base=self.base, on_progress=self.on_progress, is_cancelled=self.is_cancelled)
        shutil.rmtree(self.work)

    def _modelfile(self) -> tuple[str, ...]:
        from qlora_ui.engine.exports.ollama import write_modelfile
        from qlora_ui.engine.exports.stops import stop_ids
        from qlora_ui.engine.tokenizer import load_tokenizer
        from qlora_ui.models.folder import read_licence

        tokenizer = load_tokenizer(self.base, self.config.model.template)
        stops = [str(tokenizer.convert_ids_to_tokens(stop)) for stop in stop_ids(self.base, tokenizer)]
        gguf = next(self.out.glob("*.gguf"))
        system = shared_system(self.workspace, self.run.id)
        return write_modelfile(self.out, gguf.name, tokenizer, stops, read_licence(self.base), system=system)
