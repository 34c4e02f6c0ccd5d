"""Tests of experiments/gpu/: its rehearsal, its time limit, and what its parts are made of."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vlpt
from experiments.gpu import __main__ as command
from experiments.gpu import bench, check, detect, pretrain, tables
from experiments.gpu.programme import REHEARSAL, Programme, Sizes
from readers.pictures import DetectionSample
from training.weights import load_model

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SQUARE = np.float32([[20, 20], [60, 20], [60, 40], [20, 40]])


def make_programme(folder, seconds=1000.0, sizes=REHEARSAL):
    return Programme(folder, time.monotonic() + seconds, CPU, sizes)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def write_steps(path, batch, **plain):
    """Add the three steps of a batch to a file of results."""
    step = {"pictures_s": 10.0, "step_s": 2.0, "peak_gb": batch / 10}
    rows = [{"name": f"bench/{batch}/{kind}", **step} for kind in tables.KINDS]
    rows[1] |= {"step_s": 3.0, "share_of_bf16_peak": None, **plain}
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def test_a_table_that_cannot_be_made_is_a_sentence_and_the_others_follow(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    rows = [
        {"name": "bench/64/recomputed", "pictures_s": 1.0, "peak_gb": 1.0},  # the others failed
        {
            "name": "detect/summary of 800 photographs, 16000 crops, lr 0.001",
            "scratch": [0.5],
            "pretrained": [0.625],
            "difference": 0.125,
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables.main([str(path)])
    speed, memory, detectors = capsys.readouterr().out.strip().split("\n\n")
    assert speed.endswith("expected the three steps of a batch on a GPU, got none.")
    assert memory.endswith("expected two batches, measured on a GPU, got 0.")
    assert detectors.splitlines()[-1] == "| 800 | 16,000 | 1 | 50.0 | 62.5 | +12.5 |"
    with pytest.raises(SystemExit, match="No such file"):
        tables.main([str(tmp_path / "none.jsonl")])


def test_a_gpu_whose_arithmetic_peak_is_not_known_has_a_row(tmp_path):
    path = tmp_path / "results.jsonl"
    for batch in (64, 128):
        write_steps(path, batch)
    results = tables.read_results(path)
    assert tables.speed_table(results)[-1].startswith("| 128 | 10 | 10 | 1.50 | unknown | 12.8 GB")
    assert tables.memory_table(results)[2] == "| 16 GB | 144 | 144 |"


def test_a_step_that_was_repeated_counts_with_its_last_result(tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [{"name": "a", "x": 1}, {"name": "a", "error": "e"}, {"name": "a", "x": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tables.read_results(path) == {"a": {"name": "a", "x": 2}}


# ---- The programme -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_rehearsal_takes_every_step_and_repeats_none(tmp_path):
    start = [sys.executable, "-m", "experiments.gpu", "all", "--rehearse", "--minutes", "15"]
    start += ["--out", str(tmp_path)]
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == rows_of(tmp_path)
    names = [row["name"] for row in rows]
    assert [row for row in rows if "error" in row or "skipped" in row] == []
    for kind, count in {"check": 6, "bench": 10, "loader": 2, "pretrain": 1}.items():
        assert len([name for name in names if name.startswith(kind)]) == count
    arms = [arm.name for pair in detect.list_pairs(REHEARSAL) for arm in pair]
    assert set(arms) <= set(names) and len(set(arms)) == 5
    assert len([name for name in names if name.startswith("detect/summary")]) == 2
    for arm in arms:
        found = json.loads((tmp_path / f"{arm}.detections.json").read_text())
        assert [each["picture"] for each in found["detections"]] == ["img_801", "img_802"]

    model = load_model(tmp_path / "model.pt")
    backbone = vlpt.load_backbone(tmp_path / "backbone.pt", "resnet18")
    torch.testing.assert_close(
        model.backbone.conv1.weight, backbone.conv1.weight, atol=1e-3, rtol=0
    )

    again = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [json.loads(line)["name"] for line in again.stdout.splitlines()]
    assert all(name.startswith("detect/summary") for name in names)


def test_a_failing_step_leaves_its_error_and_the_next_one_goes_on(tmp_path, capsys):
    programme = make_programme(tmp_path)
    programme.run("a/fails", 1, lambda: {"x": 1 / 0})
    programme.run("a/works", 1, lambda: {"x": 1})
    first, second = rows_of(tmp_path)
    assert first["name"] == "a/fails" and first["error"].startswith("ZeroDivisionError")
    assert second["x"] == 1 and second["seconds"] >= 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [first, second]


def test_what_is_done_is_not_repeated_and_what_failed_is(tmp_path, capsys):
    calls = []
    for _ in range(2):
        programme = make_programme(tmp_path)
        programme.run("a/works", 1, lambda: calls.append("works") or {})
        programme.run("a/fails", 1, lambda: calls.append("fails") or {"x": 1 / 0})
        with programme.path.open("a") as file:
            file.write('{"name": "a/cut short", "sec')  # by a kill
    assert calls == ["works", "fails", "fails"]
    warning = f'warning: {programme.path}:3: expected a result, got \'{{"name": "a/cut short'
    assert capsys.readouterr().err.count(warning) == 1


def test_nothing_starts_that_cannot_end(tmp_path):
    programme = make_programme(tmp_path, seconds=100)
    programme.run("a/long", 101, lambda: pytest.fail("expected no start"))
    assert "it takes about 101 s, and 100 s are left" in rows_of(tmp_path)[0]["skipped"]


def test_an_estimate_is_corrected_by_the_last_step_of_its_kind(tmp_path):
    programme = make_programme(tmp_path, seconds=100)
    programme.finish("a/1", 10, 30.0, {})
    assert programme.expected("a/2", 20) == 60 and programme.expected("b/2", 20) == 20
    programme.finish("a/2", 10, 0.1, {})  # but not to less than half
    assert make_programme(tmp_path).expected("a/3", 20) == 10


def test_a_rehearsal_and_a_run_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert command.parse_args(["all"]).out == Path("runs/gpu")
    assert command.parse_args(["all", "--rehearse"]).out == Path("runs/gpu-rehearsal")
    assert command.parse_args(["all", "--rehearse", "--out", str(tmp_path)]).out == tmp_path


def test_the_command_needs_a_gpu_or_a_rehearsal(tmp_path, capsys):
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            command.parse_args(["all"])
        assert "GPU: expected one, got none; --rehearse" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.parse_args(["all", "--rehearse", "--icdar2015", str(tmp_path / "nowhere")])
    assert "--icdar2015: expected a folder" in capsys.readouterr().err


# ---- check and bench ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compare",
    [
        check.compare_devices,
        check.compare_precisions,
        check.compare_accumulation,
        check.compare_recomputation,
    ],
)
def test_a_comparison_passes_on_a_cpu(compare):
    assert compare(REHEARSAL, CPU)["ok"]


def test_a_comparison_notices_a_wrong_result(monkeypatch):
    monkeypatch.setattr(check, "recompute", lambda backbone: backbone.conv1.weight.data.mul_(1.1))
    with pytest.raises(ValueError, match="gradient: expected at most"):
        check.compare_recomputation(REHEARSAL, CPU)


def test_a_gradient_of_half_the_batch_is_noticed(monkeypatch):
    def use_half(forward, model, *batch, num_pieces):
        output, targets = forward(model, *(part.chunk(num_pieces)[0] for part in batch))
        vlpt.total_loss(output, targets).backward()

    monkeypatch.setattr(check, "cached_backward", use_half)
    with pytest.raises(ValueError, match="gradient: expected at most"):
        check.compare_accumulation(REHEARSAL, CPU)


def test_a_number_that_is_not_one_passes_no_comparison():
    with pytest.raises(ValueError, match="x: expected at most 1"):
        check.verdict({"x": float("nan")}, {"x": 1})


def test_a_step_is_compared_with_the_bare_backbones(tmp_path):
    programme = make_programme(tmp_path)
    programme.finish("bench/tiny/bare", 1, 1.0, {"step_s": 1e-9})
    found = bench.measure(programme, "tiny", "tiny", 4, "plain")
    assert found["over_bare"] == pytest.approx(found["step_s"] / 1e-9)
    assert found["gflop_picture"] > 0


# ---- pretrain ----------------------------------------------------------------------------------


def test_the_pool_gives_each_picture_as_often_as_allowed_and_replaces_the_oldest():
    sizes = dataclasses.replace(REHEARSAL, pool=8, uses=2)
    pool, rng = pretrain.PicturePool(sizes, CPU), np.random.default_rng(0)
    assert pool.draw(4, rng) is None

    def add(first):
        images = torch.arange(first, first + 4, dtype=torch.uint8).view(4, 1, 1, 1)
        ids = torch.full((4, vlpt.MAX_CHARS, pretrain.MAX_SHOWN), vlpt.PAD)
        ids[:, 0] = images.view(4, 1).long() + 3
        pool.add(images.expand(4, 3, 64, 64), ids)

    def draw():
        images, ids = pool.draw(4, rng)
        numbers = images[:, 0, 0, 0].long()
        assert torch.equal(ids[:, 0, 0], numbers + 3)  # words stay with their picture
        return numbers.tolist()

    add(0)
    assert sorted(draw() + draw()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pool.draw(4, rng) is None
    add(4)
    add(8)  # in place of 0 .. 3
    drawn = [number for _ in range(4) for number in draw()] if pool.uses_left.sum() == 16 else []
    assert len(drawn) == 16 and set(drawn) == set(range(4, 12))
    assert max(map(drawn.count, drawn)) == 2


def test_three_of_a_picture_s_words_are_drawn_without_repetition():
    ids = torch.zeros(200, vlpt.MAX_CHARS, 4, dtype=torch.long)
    ids[:, 0] = torch.tensor([3, 4, 5, 6])
    ids[100:, 0, 2:] = vlpt.PAD
    drawn = pretrain.draw_words(ids, np.random.default_rng(0))[:, 0]
    assert drawn.shape == (200, 3)
    assert all(len(set(row)) == 3 for row in drawn[:100].tolist())
    assert {frozenset(row) for row in drawn[100:].tolist()} == {frozenset({3, 4, vlpt.PAD})}
    assert {*drawn[:100].flatten().tolist()} == {3, 4, 5, 6}


def test_pictures_are_varied_each_in_its_own_way_and_keep_their_centre():
    images = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 24:40, 24:40] = 200
    varied = pretrain.vary(images, np.random.default_rng(0))
    assert varied.shape == images.shape and varied.dtype == torch.uint8
    assert len({tuple(picture.flatten().tolist()) for picture in varied}) == 8
    assert (varied[:, :, 30:34, 30:34] > varied[:, :, :4, :4] + 40).all()


def test_stages_follow_from_accuracy_and_steps():
    def changes(accuracies, steps):
        curriculum = pretrain.Curriculum(Sizes(), SimpleNamespace(value=0))
        for step, accuracy in accuracies:
            curriculum.update(step, accuracy, steps)
        return curriculum.changes

    read = [(500, 0.5), (700, 0.6), (1500, 0.9), (2000, 0.9)]
    assert changes(read, 5000) == {"short": 700, "full": 2000}
    assert changes([(1499, 0.1), (1500, 0.1), (2000, 0.1)], 9000) == {"short": 1500, "full": 2000}
    assert changes([(150, 0.1), (200, 0.1)], 500) == {"short": 150, "full": 200}


def test_each_stage_draws_its_pictures():
    stage = SimpleNamespace(value=0)
    rendered = pretrain.RenderedWords(vlpt.Config(image_size=96), stage)
    alphabet = vlpt.Alphabet()
    words = []
    for number in range(3):
        stage.value = number
        ids = torch.stack([rendered[k][1] for k in range(40)])
        words.append([[w for w in alphabet.decode(picture) if w] for picture in ids])
    digits, short, full = words
    assert all(len(w) == 1 and w[0].isdigit() and 2 <= len(w[0]) <= 4 for w in digits)
    assert all(len(w) == 1 and 1 <= len(w[0]) <= 4 for w in short)
    assert max(map(len, full)) > 1 and any(len(w[0]) > 4 for w in full)


def test_batches_of_several_workers_have_the_pictures_in_their_order():
    config, stage = vlpt.Config(image_size=32), multiprocessing.Value("i", 0)
    rendered = pretrain.RenderedWords(config, stage)
    with pretrain.rendered_batches(config, stage, 2, 2, on_gpu=False) as arrived:
        batches = [arrived.get(timeout=60) for _ in range(3)]
    for k, image in enumerate(torch.cat([images for images, _ in batches])):
        assert torch.equal(image, rendered[k][0])


# ---- detect ------------------------------------------------------------------------------------


def test_arms_come_in_pairs_and_in_order():
    pairs = detect.list_pairs(Sizes())
    assert [len(pair) for pair in pairs] == [2] * 10 + [1, 1]
    first, second = pairs[0]
    assert dataclasses.replace(second, is_pretrained=False) == first
    assert [(p[0].photographs, p[0].crops) for p in pairs[:5]] == [
        *[(800, 4000)] * 3,
        (800, 16000),
        (100, 4000),
    ]
    names = [arm.name for pair in pairs for arm in pair]
    assert len(set(names)) == len(names) == 22


def test_a_pair_starts_only_if_both_of_its_arms_can_end(tmp_path):
    pair = detect.list_pairs(REHEARSAL)[0]
    needed = sum(arm.estimate for arm in pair)
    programme = make_programme(tmp_path, seconds=needed + 5)
    waiting, started = [pair], []
    assert detect.choose(programme, waiting, started) == pair[0]
    assert detect.choose(programme, waiting, started) == pair[1]
    assert detect.choose(programme, waiting, started) is None
    programme = make_programme(tmp_path, seconds=needed - 5)
    assert detect.choose(programme, [pair], []) is None
    programme.finish(pair[0].name, pair[0].estimate, pair[0].estimate, {})
    assert detect.choose(programme, [pair], []) == pair[1]  # whose other arm is done


def test_a_varied_photograph_keeps_its_words_in_their_polygons():
    image = Image.new("RGB", (96, 64))
    image.paste((255, 255, 255), (20, 20, 60, 40))
    sample = DetectionSample(image, [SQUARE], np.zeros(1, bool))
    seen = set()
    for seed in range(20):
        varied = detect.vary(sample, np.random.default_rng(seed))
        x, y = varied.polygons[0].mean(0)
        assert varied.image.size == (96, 64)
        assert varied.image.getpixel((int(x), int(y))) == (255, 255, 255)
        outside = varied.polygons[0][0] * 1.5 - np.array([x, y]) / 2  # beyond a corner
        assert varied.image.getpixel(tuple(outside.astype(int).tolist()))[0] < 250
        seen.add(x < 48)
    assert seen == {False, True}  # flipped and not


def test_the_smallest_score_decides_what_counts():
    found = detect.Found("a", [SQUARE, SQUARE + 30], [0.9, 0.6], [SQUARE], np.zeros(1, bool))
    assert detect.score([found], 0.5)["f"] == pytest.approx(2 / 3)
    assert detect.score([found], 0.8)["f"] == 1


def test_a_process_that_is_late_is_ended(tmp_path):
    programme = make_programme(tmp_path, seconds=-1)
    (arm, _), ended = detect.list_pairs(REHEARSAL)[0], []
    process = SimpleNamespace(
        is_alive=lambda: not ended, terminate=lambda: ended.append(1), join=lambda: None
    )
    running = {arm: detect.Running(process, time.monotonic())}
    detect.collect(programme, running)
    assert ended and not running
    assert "it did not end in time" in rows_of(tmp_path)[0]["error"]
