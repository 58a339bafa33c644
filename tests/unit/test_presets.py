"""Every shipped preset parses, explains itself, names a model that is known, and fits the card that it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ui.base.errors import SettingsError
from qlora_ui.base.units import GIB, MIB
from qlora_ui.estimate.memory import estimate_memory
from qlora_ui.hardware.devices import sized_profile
from qlora_ui.models.architecture import facts_from_config
from qlora_ui.models.known import KNOWN_CONFIGS
from qlora_ui.settings import presets
from qlora_ui.settings.presets import (
    SHIPPED,
    delete_preset,
    find_preset,
    is_taken,
    list_presets,
    named_preset,
    read_preset,
    read_yaml,
    save_preset,
    unreadable_presets,
)
from qlora_ui.settings.run_config import RunConfig
from qlora_ui.settings.sections import BUILTIN_MODEL

PATHS = sorted(SHIPPED.glob("*.yaml"))
HEADER = {"version", "title", "about", "card_gib"}


def test_there_are_ten_and_the_demo_comes_first() -> None:
    presets = list_presets()
    assert len(presets) == len(PATHS) == 10
    assert presets[0].name == "demo" and presets[0].card_gib is None
    assert {preset.card_gib for preset in presets[1:]} == {8, 12, 16, 24, 48}
    assert len({preset.title for preset in presets}) == 10


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_preset_parses_and_gives_the_reason_of_every_line(path: Path) -> None:
    preset = read_preset(path)
    assert preset.title and preset.about.endswith(".")
    lines = path.read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if line.startswith("  ")]
    assert options
    assert not [line for line in options if "#" not in line]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_a_preset_writes_is_what_it_means(path: Path) -> None:
    document = read_yaml(path.read_text(encoding="utf-8"), path.name)
    config = read_preset(path).config
    for section, options in document.items():
        if section in HEADER:
            continue
        for name, value in options.items():
            found = config.get(f"{section}.{name}")
            assert (list(found) if isinstance(value, list) else found) == value


def test_the_lessons_numbers() -> None:
    config = read_preset(SHIPPED / "seed-qwen2.5-1.5b.yaml").config
    assert config.model.id == "Qwen/Qwen2.5-1.5B-Instruct"
    assert (config.effective_batch, config.train.batch_size, config.train.accumulation) == (16, 4, 4)
    assert (config.lora.rank, config.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert set(config.lora.targets) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (config.train.epochs, config.data.max_length, config.train.learning_rate) == (3, 512, 2e-4)
    assert (config.train.schedule, config.train.warmup, config.data.train_on) == ("cosine", 0.03, "answers")
    assert (config.quant.type, config.quant.double_quant, config.quant.compute_dtype) == ("nf4", True, "bfloat16")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_fits_its_card_beside_a_desktop(path: Path) -> None:
    preset = read_preset(path)
    if preset.card_gib is None:
        assert preset.config.model.id == BUILTIN_MODEL
        return
    card = sized_profile(round(preset.card_gib * GIB * 0.98), "card")
    card = replace(card, free_bytes=card.total_bytes - 400 * MIB)
    facts = facts_from_config(KNOWN_CONFIGS[preset.config.model.id])
    for fast_path in ("auto", "off"):
        estimate = estimate_memory(facts, preset.config.changed({"train.fast_path": fast_path}), card)
        assert estimate.high_bytes <= card.free_bytes
        assert estimate.load_peak_bytes <= card.free_bytes


def test_every_preset_but_the_demo_keeps_the_effective_batch() -> None:
    for path in PATHS:
        if path.stem != "demo":
            assert read_preset(path).config.effective_batch == RunConfig().effective_batch


@pytest.mark.parametrize("text", [*(path.read_text(encoding="utf-8") for path in PATHS), RunConfig().to_yaml(), "a: {b: 2e-4, c: [1, ~]}"])
def test_both_parsers_read_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = read_yaml(text, "settings")
    monkeypatch.setattr(presets, "_QuickLoader", presets._Loader)
    assert quick == read_yaml(text, "settings")


@pytest.mark.parametrize(
    "text", ["a: &x [1]\nb: *x", "a: &x [1]\nb: [2, *x]", "a: 1\nb: [", "a: !!python/object:os.system x", "a: " + 100_000 * "["]
)
def test_what_is_refused_is_refused_by_either_parser(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_yaml(text, "settings")
    assert caught.value.problems[0].where.startswith("settings")


@pytest.mark.parametrize(("written", "read"), [("12", 12), ("7.5", 7.5), ("12 GB", None), ("[12]", None)])
def test_a_card_that_is_no_number_is_left_out(written: str, read: float | None, tmp_path: Path) -> None:
    # The Recipe tab writes it as a number.
    (tmp_path / "mine.yaml").write_text(f"card_gib: {written}\nlora: {{rank: 4}}\n", encoding="utf-8")
    assert read_preset(tmp_path / "mine.yaml").card_gib == read


def test_a_preset_of_ones_own_is_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    first, second = (RunConfig().changed({"lora.rank": rank}) for rank in (8, 12))
    save_preset("mine", "Mine", first, tmp_path)
    with pytest.raises(SettingsError, match="There is a preset “mine” already"):
        save_preset("mine", "Mine", second, tmp_path)
    assert find_preset("mine", tmp_path).config == first
    save_preset("mine", "Mine", second, tmp_path, replaces=True)
    assert find_preset("mine", tmp_path).config == second


@pytest.mark.parametrize(
    ("typed", "name", "title"),
    [
        ("My look", "my-look", "My look"),
        ("my-recipe", "my-recipe", "My recipe"),
        ("  Мой  рецепт ", "мой-рецепт", "Мой рецепт"),
        ("../../evil", "evil", "../../evil"),
        ("Con", "_con", "Con"),
    ],
)
def test_what_is_typed_becomes_a_file_name_and_stays_the_title(typed: str, name: str, title: str, tmp_path: Path) -> None:
    assert named_preset(typed) == (name, title)
    assert save_preset(name, title, RunConfig(), tmp_path / "presets").parent == tmp_path / "presets"
    assert find_preset(name, tmp_path / "presets").title == title and is_taken(named_preset(typed)[0], tmp_path / "presets")


@pytest.mark.parametrize(("typed", "said"), [("", "needs a name"), ("!?", "needs a name"), ("Demo", "“demo” is a preset that comes")])
def test_no_letters_and_a_shipped_presets_name_are_refused(typed: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        save_preset(*named_preset(typed), RunConfig(), tmp_path)


def test_a_deleted_preset_is_in_the_trash_and_nothing_else_can_be_deleted(tmp_path: Path) -> None:
    folder, trash = tmp_path / "presets", tmp_path / "trash"
    save_preset("mine", "Mine", RunConfig(), folder)
    (folder / "torn.yaml").write_text("lora: [", encoding="utf-8")
    outside = tmp_path / "elsewhere.yaml"
    outside.write_text("lora: {rank: 4}", encoding="utf-8")
    (folder / "link.yaml").symlink_to(outside)
    for name in ("demo", "../elsewhere", "", "gone"):
        with pytest.raises(SettingsError, match="You have no preset"):
            delete_preset(name, folder, trash)
    moved = [delete_preset(name, folder, trash) for name in ("mine", "torn", "link")]
    assert [path.name for path in moved] == ["mine.yaml", "torn.yaml", "link.yaml"] and all(path.parent.parent == trash for path in moved)
    assert not list(folder.iterdir()) and outside.is_file()


def test_a_preset_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    save_preset("good", "Good", RunConfig(), tmp_path)
    (tmp_path / "torn.yaml").write_text("lora: [", encoding="utf-8")
    (tmp_path / "newer.yaml").write_text("version: 9\nlora: {rank: 8}", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("lora: {size: 8}", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    told = unreadable_presets(tmp_path)
    assert sorted(told) == ["latin.yaml", "newer.yaml", "other.yaml", "torn.yaml"]
    assert "layout 9" in told["newer.yaml"] and "lora.size" in told["other.yaml"] and "line 1" in told["torn.yaml"]
    assert [preset.name for preset in list_presets(tmp_path)][10:] == ["good"]


def test_a_preset_that_is_a_link_to_nothing_is_named_and_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "mine.yaml"
    link.symlink_to(tmp_path / "away" / "mine.yaml")
    assert "mine" not in [preset.name for preset in list_presets(tmp_path)] and "mine.yaml" in unreadable_presets(tmp_path)
    with pytest.raises(SettingsError, match=r"mine.yaml cannot be read.*No such file"):
        find_preset("mine", tmp_path)
    with pytest.raises(SettingsError, match="already"):
        save_preset("mine", "Mine", RunConfig(), tmp_path)
    assert link.is_symlink()
