"""Tests of experiments/curriculum.py: small stages, controls, and what the swapped words are."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import train_min
import vlpt
from experiments import curriculum
from training import data, weights
from training.dataset import Batch


@pytest.fixture
def small(monkeypatch, tmp_path, no_figures):
    """Stages of two steps and models of few layers, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(curriculum.CONFIG, text_layers=1, decoder_layers=1)
    monkeypatch.setattr(curriculum, "CONFIG", config)
    options = ("--batch", "4", "--eval", "4", "--workers", "0")
    monkeypatch.setattr(curriculum, "COMMON", (*curriculum.COMMON, *options))
    stages = tuple(stage._replace(samples=8) for stage in curriculum.STAGES)
    monkeypatch.setattr(curriculum, "STAGES", stages)
    monkeypatch.setattr(train_min, "PRESETS", dict(train_min.PRESETS))


def config_of(folder):
    return json.loads(Path(folder, "run.json").read_text())["config"]


@pytest.mark.usefixtures("small")
def test_each_stage_starts_from_the_one_before_and_is_not_repeated(capsys):
    curriculum.main([])
    out = capsys.readouterr().out
    assert out.count("the whole model") == 2
    assert "the model is runs/curriculum-scenes/checkpoint.pt" in out
    configs = [config_of(f"runs/curriculum-{stage.name}") for stage in curriculum.STAGES]
    assert [config["image_size"] for config in configs] == [64, 64, 96]
    assert configs[-1]["alphabet"] == vlpt.PRINTABLE
    curriculum.main([])
    assert "RESULT" not in capsys.readouterr().out
    Path("runs/curriculum-scenes/metrics.json").unlink()  # as if it had been interrupted at its end
    curriculum.main([])
    assert "resumed after 8 pictures" in capsys.readouterr().out


def test_the_included_weights_have_its_sizes():
    assert weights.load_model().config == curriculum.CONFIG


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What train_min.py is called with, in an empty folder, instead of running it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_min, "PRESETS", dict(train_min.PRESETS))
    made = []

    def train(argv):
        made.append((argv, train_min.PRESETS["curriculum"].config, data.prepare))

    monkeypatch.setattr(train_min, "main", train)
    return made


@pytest.mark.parametrize(
    ("control", "changed"),
    [
        ("characters", {"contrastive": False}),
        ("contrastive", {"decoder": "none"}),
        ("swapped", {}),
    ],
)
def test_a_control_has_two_stages_and_one_thing_changed(control, changed, calls):
    curriculum.main(["--control", control])
    first, second = (f"curriculum-{control}-{stage}" for stage in ("one-word", "two-words"))
    assert [argv[1] for argv, _, _ in calls] == [first, second]
    assert "--init" not in calls[0][0] and "--overwrite" in calls[0][0]
    assert calls[1][0][-3:-1] == ["--init", str(Path("runs", first, "checkpoint.pt").resolve())]
    expected = dataclasses.replace(curriculum.CONFIG, **changed)
    for _, config, prepare in calls:
        assert config == expected
        assert (prepare is curriculum.prepare_swapped) == (control == "swapped")
    assert data.prepare is curriculum.prepare


@pytest.mark.parametrize("file", ["checkpoint.pt", "checkpoint.previous.pt"])
def test_a_stage_that_was_interrupted_goes_on_as_the_control_that_it_was(file, calls):
    folder = Path("runs/curriculum-swapped-one-word")
    folder.mkdir(parents=True)
    (folder / file).touch()
    curriculum.main(["--control", "swapped"])
    assert calls[0][0] == ["--name", folder.name, "--resume"]
    assert calls[0][2] is curriculum.prepare_swapped


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [["--seed", "1"], []])
def test_a_run_of_another_model_or_seed_is_not_taken_for_an_earlier_part(options, monkeypatch):
    folder = Path("runs/curriculum-one-word")
    folder.mkdir(parents=True)
    config = dataclasses.replace(curriculum.CONFIG, decoder_layers=1 if options else 5)
    facts = {"config": dataclasses.asdict(config), "args": {"seed": 0}}
    facts |= {"chance": [4.5, 8.3], "processes": 1}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "metrics.json").touch()
    message = "curriculum-one-word: expected a run of the same model and seed, got another"
    with pytest.raises(SystemExit, match=message):
        curriculum.main(options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("content", ["{}", '{"config": '])
def test_a_damaged_run_is_named(content):
    folder = Path("runs/curriculum-one-word")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    with pytest.raises(SystemExit, match=r"curriculum-one-word/run\.json: expected .* damaged"):
        curriculum.main([])


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
