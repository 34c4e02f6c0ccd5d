"""Tests of experiments/curriculum.py: small stages, controls, and what the swapped words are."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import vlpt
from experiments import curriculum
from training import data, weights
from training.dataset import Batch


@pytest.fixture
def small(monkeypatch, tmp_path, no_figures):
    """Stages of two steps, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    options = ("--batch", "8", "--eval", "16", "--workers", "0")
    monkeypatch.setattr(curriculum, "COMMON", (*curriculum.COMMON, *options))
    stages = tuple(stage._replace(samples=16) for stage in curriculum.STAGES)
    monkeypatch.setattr(curriculum, "STAGES", stages)


def config_of(folder):
    return json.loads(Path(folder, "run.json").read_text())["config"]


@pytest.mark.usefixtures("small")
def test_each_stage_starts_from_the_one_before_and_is_not_repeated(capsys):
    curriculum.main([])
    out = capsys.readouterr().out
    assert out.count("the whole model") == 2
    assert "the model is runs/curriculum-scenes/checkpoint.pt" in out
    sizes = [
        config_of(f"runs/curriculum-{stage.name}")["image_size"] for stage in curriculum.STAGES
    ]
    assert sizes == [64, 64, 96]
    curriculum.main([])
    assert "RESULT" not in capsys.readouterr().out


def test_the_included_weights_have_its_sizes():
    assert weights.load_model().config == curriculum.CONFIG


@pytest.mark.parametrize(
    ("control", "changed"),
    [
        ("characters", {"contrastive": False}),
        ("contrastive", {"decoder": "none"}),
        ("swapped", {}),
    ],
)
def test_a_control_has_two_stages_and_one_thing_changed(control, changed, monkeypatch):
    runs = []

    def train(argv):
        config = curriculum.train_min.PRESETS["curriculum"].config
        runs.append((argv[1], config, data.prepare))

    monkeypatch.setattr(curriculum.train_min, "main", train)
    curriculum.main(["--control", control])
    assert [name for name, _, _ in runs] == [f"{control}-one-word", f"{control}-two-words"]
    expected = dataclasses.replace(curriculum.CONFIG, **changed)
    for _, config, prepare in runs:
        assert config == expected
        assert (prepare is curriculum.prepare_swapped) == (control == "swapped")
    assert data.prepare is curriculum.prepare


def test_swapped_words_are_those_of_the_picture_before():
    alphabet = vlpt.Alphabet()
    ids = torch.stack([alphabet.encode([word]) for word in ("one", "two", "six")])
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    pixels, masked, targets = curriculum.prepare_swapped(
        Batch(images, ids, []), 0, torch.device("cpu")
    )
    assert pixels.equal(images)
    whole = torch.where(targets == vlpt.IGNORE_INDEX, masked, targets)
    assert [alphabet.decode(each)[0] for each in whole] == ["six", "one", "two"]
