"""Tests of transfer/export.py: the command that exports the backbone of a run."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vlpt
from training.weights import save_model
from transfer import export

ROOT = Path(__file__).parents[1]
SMALL = replace(
    vlpt.TINY,
    alphabet="abcd",
    backbone_size={"width": 8, "layers": (1, 1)},
    decoder_layers=1,
    text_layers=1,
)


def write_run(config: vlpt.Config) -> vlpt.VLPT:
    """Leave in run/ what train_min.py does."""
    model = vlpt.VLPT(config)
    Path("run").mkdir()
    checkpoint = {
        "state_dict": model.state_dict(),
        "config": asdict(config),
        "step": 12,
        "args": {"data": "synth"},
    }
    torch.save(checkpoint, "run/checkpoint.pt")
    return model


def read_metadata(path: str) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("given", ["run", "run/checkpoint.pt"])
@pytest.mark.parametrize("layout", ["native", "mmocr", "timm"])
def test_exports_a_run(tmp_path, monkeypatch, capsys, given, layout):
    monkeypatch.chdir(tmp_path)
    model = write_run(SMALL)
    options = [] if layout == "native" else ["--layout", layout]
    export.main([given, "b.safetensors", *options])
    backbone = vlpt.load_backbone("b.safetensors", "clip_resnet", **SMALL.backbone_size)
    weights = backbone.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in model.backbone.state_dict().items())
    metadata = read_metadata("b.safetensors")
    assert (metadata["layout"], metadata["alphabet_size"]) == (layout, "4")
    assert (metadata["training_data"], metadata["steps"]) == ("synth", "12")
    assert capsys.readouterr().out == "wrote b.safetensors\n"


def test_exports_the_checkpoint_before_the_last_if_only_that_is_left(tmp_path, monkeypatch):
    """As of a run that was killed between two renames."""
    monkeypatch.chdir(tmp_path)
    model = write_run(SMALL)
    Path("run/checkpoint.pt").rename("run/checkpoint.previous.pt")
    export.main(["run", "b.pt"])
    weights = vlpt.read_checkpoint("b.pt")
    assert torch.equal(weights["conv1.weight"], model.backbone.conv1.weight)


def test_exports_a_whole_model_that_is_no_checkpoint_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = vlpt.VLPT(SMALL)
    save_model(model, Path("model.pt"))
    export.main(["model.pt", "b.safetensors"])
    weights = vlpt.read_checkpoint("b.safetensors")
    torch.testing.assert_close(weights["conv1.weight"], model.backbone.conv1.weight.half().float())
    assert "training_data" not in read_metadata("b.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none b.pt", "none: expected a run's folder with a checkpoint.pt, or a file, got neither"),
        (
            "empty b.pt",
            "empty: expected a run's folder with a checkpoint.pt, or a file, got neither",
        ),
        ("foreign.pt b.pt", "foreign.pt: expected a whole model, got no state_dict and config"),
        ("other.pt b.pt", "other.pt: expected weights that fit the config in the file, got"),
        ("half.pt b.pt", "half.pt: expected what train_min.py writes, got a damaged file"),
        ("cut.pt b.pt", "cut.pt: "),
        ("odd.pt b.pt", "odd.pt: "),
        ("run b.bin", "path: "),
        ("run no/b.pt", "path: "),
        ("run b.pt --layout mmocr", "layout: "),
        ("run b.safetensors", "import of safetensors.torch"),
        ("a.safetensors b.pt", "import of safetensors.torch"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(replace(SMALL, backbone="resnet18", backbone_size={}))
    Path("empty").mkdir()
    torch.save(torch.load("run/checkpoint.pt") | {"args": {}}, "half.pt")
    torch.save({"epoch": 1}, "foreign.pt")
    torch.save({"state_dict": 1}, "odd.pt")
    torch.save({"config": {"sides": 3}, "state_dict": {}}, "other.pt")
    Path("cut.pt").write_bytes(Path("run/checkpoint.pt").read_bytes()[:-200])
    Path("a.safetensors").touch()
    before = set(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stop:
        export.main(arguments.split())
    shown = str(stop.value)
    assert shown.startswith(f"python -m transfer.export: error: {message}")
    assert "\n" not in shown
    assert set(tmp_path.rglob("*")) == before


def test_a_wrong_file_name_and_a_wrong_layout_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(replace(SMALL, backbone="resnet18", backbone_size={}))
    for arguments, named in (
        (["b.bin"], ("b.bin", ".pt", ".safetensors")),
        (["no/b.pt"], ("no/b.pt", "existing folder")),
        (["b.pt", "--layout", "mmocr"], ("mmocr", "native", "timm")),
    ):
        with pytest.raises(SystemExit) as stop:
            export.main(["run", *arguments])
        assert all(part in str(stop.value) for part in named)


def test_a_layout_that_does_not_exist_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        export.main(["run", "b.pt", "--layout", "keras"])
    assert stop.value.code == 2 and "invalid choice: 'keras'" in capsys.readouterr().err


def test_the_command_runs_from_the_clone_and_shows_no_traceback(tmp_path):
    command = [sys.executable, "-m", "transfer.export", tmp_path / "none", tmp_path / "b.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("python -m transfer.export: error: ")
    assert done.stderr.count("\n") == 1
