"""Tests of experiments/gpu_carry.py: what travels to a machine without a package index."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from experiments import gpu_carry
from readers import open_source

LINE = "10,10,50,10,50,30,10,30,word\n"


@pytest.fixture
def photographs(tmp_path):
    """Three noisy photographs in the layout of ICDAR 2015."""
    root = tmp_path / "icdar2015"
    for folder in (gpu_carry.IMAGES, gpu_carry.LABELS):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in (1, 2, 801):
        pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(root / gpu_carry.IMAGES / f"img_{k}.jpg", quality=95)
        (root / gpu_carry.LABELS / f"gt_img_{k}.txt").write_text(LINE)
    return root


@pytest.fixture
def pip(monkeypatch):
    """What pip was called with, which downloads nothing."""
    calls = []

    def run(command, **_):
        calls.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gpu_carry.subprocess, "run", run)
    return calls


def test_what_arrives_is_read_as_the_data_set_itself(photographs, tmp_path, pip, capsys):
    out = tmp_path / "carry"
    gpu_carry.main([str(photographs), "--out", str(out)])
    assert "photographs of quality 70" in capsys.readouterr().out
    for split, count in (("train", 2), ("heldout", 1)):
        source = open_source(f"icdar2015:{out / 'icdar2015'}", split)
        assert len(source) == count
        assert source[0].image.shape == (64, 96, 3) and source[0].words == ["word"]
    content = (out / "icdar2015" / gpu_carry.IMAGES / "img_1.jpg").read_bytes()
    assert content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    (command,) = pip
    assert {"shapely>=2.1", "pyclipper>=1.3.0.post4", "font-lato==0.1.0"} <= set(command)
    assert command[command.index("--python-version") + 1] == "3.12"


def test_the_quality_falls_until_the_photographs_fit(photographs, tmp_path):
    sizes = [
        sum(len(gpu_carry.encode(path, q)) for path in (photographs / gpu_carry.IMAGES).iterdir())
        for q in gpu_carry.QUALITIES
    ]
    assert sizes == sorted(sizes, reverse=True)
    found = gpu_carry.copy_photographs(photographs, tmp_path / "carry", sizes[1])
    assert found == (gpu_carry.QUALITIES[1], sizes[1])


def test_mistakes_are_told_in_one_line(photographs, tmp_path, pip):
    with pytest.raises(SystemExit, match=r"expected photographs img_1\.jpg"):
        gpu_carry.main([str(tmp_path), "--out", str(tmp_path / "carry")])
    options = ["--out", str(tmp_path / "carry"), "--megabytes", "0.0001"]
    with pytest.raises(SystemExit, match="expected room for 3 photographs"):
        gpu_carry.main([str(photographs), *options])
    assert pip == []


def test_a_failing_download_says_why(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: no matching distribution")
    monkeypatch.setattr(gpu_carry.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="pip download: ERROR: no matching"):
        gpu_carry.download_wheels(tmp_path, "3.12")
