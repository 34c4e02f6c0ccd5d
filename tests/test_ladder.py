"""Tests of experiments/ladder.py: which run comes next, what is chosen, and one small ladder."""

import dataclasses
import json
import math
from pathlib import Path
from statistics import stdev

import pytest
import torch
from scipy.stats import t, ttest_rel

import vlpt
from experiments import ladder
from experiments.gpu.__main__ import draw_photographs
from experiments.ladder import CHOOSING_SEED, Job
from training.runs import git_commit
from transfer.detect import load_detector


@pytest.fixture(autouse=True)
def no_other_results(tmp_path, monkeypatch):
    """Without those of experiments/ladder.json."""
    monkeypatch.setattr(ladder, "RESULTS", tmp_path / "ladder.json")


def finish(job, folder, **found):
    row = {**job._asdict(), "backbone": None, **found}
    (folder / f"{job.name}.json").write_text(json.dumps(row))


def finish_rates(arm, budget, folder, best):
    """Try rates until one is chosen: the nearer to the best one, the better."""
    while ladder.choose(arm, budget, folder) is None:
        for lr in ladder.rates_to_try(arm, budget, folder):
            f = 0.5 - 0.1 * abs(ladder.RATES.index(lr) - ladder.RATES.index(best))
            finish(Job(arm, budget, lr, CHOOSING_SEED), folder, choosing=[[0.5, 0.0], [0.8, f]])


def test_rates_come_before_seeds_and_the_ends_of_the_ladder_first(tmp_path):
    assert ladder.next_job("scratch", tmp_path) == Job("scratch", 1, 3e-4, CHOOSING_SEED)
    finish_rates("scratch", 1, tmp_path, best=3e-3)
    order = []
    while job := ladder.next_job("scratch", tmp_path):
        assert job.arm == "scratch"
        order.append((job.budget, job.lr, job.seed))
        finish(job, tmp_path, f=0.1, choosing=[[0.5, 0.2]])
    assert order[:8] == [
        *((1, 3e-3, seed) for seed in range(5)),
        *((8, lr, CHOOSING_SEED) for lr in (1e-3, 3e-3, 1e-2)),
    ]
    budgets = [budget for budget, _, _ in order]
    assert budgets == sorted(budgets, key=ladder.ORDER.index)
    for budget, seeds in ladder.BUDGETS.items():
        scored = [s for b, _, s in order if b == budget and s != CHOOSING_SEED]
        assert scored == [*range(seeds)]
    assert ladder.units_left("scratch", tmp_path) == 0
    assert ladder.next_job("pre-trained", tmp_path).seed == CHOOSING_SEED  # an arm of its own


def test_the_rate_and_the_smallest_score_are_those_of_the_best_f(tmp_path):
    assert ladder.choose("scratch", 1, tmp_path) is None
    finish_rates("scratch", 1, tmp_path, best=1e-3)
    assert ladder.choose("scratch", 1, tmp_path) == (1e-3, 0.8)
    assert ladder.choose("scratch", 8, tmp_path) is None  # not before its own rates are done


@pytest.mark.parametrize(
    ("best", "tried"), [(3e-4, [3e-4, 1e-3]), (1e-3, [3e-4, 1e-3, 3e-3]), (1e-2, [3e-3, 1e-2])]
)
def test_larger_budgets_try_the_best_rate_and_its_neighbours(best, tried, tmp_path):
    assert ladder.rates_to_try("scratch", 8, tmp_path) == []
    finish_rates("scratch", 1, tmp_path, best=best)
    assert ladder.rates_to_try("scratch", 8, tmp_path) == tried


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (3e-4, [3e-4, 1e-3, 3e-3, 1e-2]),
        (1e-3, [3e-4, 1e-3, 3e-3, 1e-2]),
        (3e-3, [1e-3, 3e-3, 1e-2]),
    ],
)
def test_a_rate_at_an_end_is_not_chosen_before_the_next_one_was_tried(best, tried, tmp_path):
    finish_rates("scratch", 1, tmp_path, best=3e-3)
    finish_rates("scratch", 8, tmp_path, best=best)
    assert ladder.rates_to_try("scratch", 8, tmp_path) == tried
    assert ladder.choose("scratch", 8, tmp_path) == (best, 0.8)


def test_results_count_only_with_the_rate_and_threshold_that_are_chosen_now(tmp_path):
    finish_rates("scratch", 1, tmp_path, best=1e-3)
    finish(Job("scratch", 1, 1e-3, 0), tmp_path, f=0.4, min_score=0.8)
    finish(Job("scratch", 1, 3e-3, 0), tmp_path, f=0.9, min_score=0.8)  # of a former choice
    finish(Job("scratch", 1, 1e-3, 1), tmp_path, f=0.9, min_score=0.5)
    finish(Job("scratch", 1, 1e-3, 2), tmp_path)  # its score was removed
    assert [row["f"] for row in ladder.scored_rows(tmp_path)] == [0.4]
    left = [ladder.is_done(Job("scratch", 1, 1e-3, seed), tmp_path) for seed in range(3)]
    assert left == [True, True, False]
    assert ladder.next_job("scratch", tmp_path) == Job("scratch", 1, 1e-3, 2)


def test_the_amount_that_is_left_counts_crops(tmp_path):
    units = 4 * 1 + 3 * (2 + 4 + 8) + 5 * 1 + 3 * 2 + 5 * 4 + 5 * 8
    # Before the rates of 1 x are done, those of larger budgets count as three.
    assert ladder.units_left("scratch", tmp_path) == units
    finish_rates("scratch", 1, tmp_path, best=1e-3)
    finish(Job("scratch", 1, 1e-3, 0), tmp_path, f=0.3)
    assert ladder.units_left("scratch", tmp_path) == units - 5


@pytest.fixture
def small_ladder(tmp_path, monkeypatch):
    """One budget of two steps, and two rates."""
    photographs = tmp_path / "icdar2015"
    photographs.mkdir()
    draw_photographs(photographs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ladder, "PLOT", tmp_path / "ladder.png")
    monkeypatch.setattr(ladder, "BASE", 8)
    monkeypatch.setattr(ladder, "BUDGETS", {1: 1})
    monkeypatch.setattr(ladder, "CONTROL_BUDGETS", {1: 1})
    monkeypatch.setattr(ladder, "ORDER", (1,))
    monkeypatch.setattr(ladder, "RATES", (1e-3, 3e-3))
    monkeypatch.setattr(ladder, "CALIBRATION_BATCHES", 2)
    monkeypatch.setattr(ladder, "CONFIG", dataclasses.replace(ladder.CONFIG, width=8, long_side=96))
    monkeypatch.setattr(ladder, "CROP", 64)
    return str(photographs)


def test_a_small_ladder_leaves_detectors_that_can_be_scored_again(small_ladder, tmp_path, capsys):
    ladder.main(["run", small_ladder, "--dry-run"])
    assert "as much as 3 runs" in capsys.readouterr().out
    ladder.main(["run", small_ladder])
    folder = tmp_path / "runs/ladder"
    assert len(list(folder.glob("scratch-1x-lr*-seed*.pt"))) == 3
    (row,) = [json.loads(path.read_text()) for path in folder.glob("*seed0.json")]
    assert set(row) >= {"arm", "budget", "lr", "seed", "f", "precision", "recall", "min_score"}
    detections = json.loads(next(folder.glob("*seed0.detections.json")).read_text())
    names = [each["picture"] for each in detections["detections"]]
    assert names == ["img_801", "img_802"]
    _, config = load_detector(next(folder.glob("*seed0.pt")), "cpu")
    assert config == ladder.CONFIG
    ladder.main(["report"])
    out = capsys.readouterr().out
    assert "(1 seed) | not run |" in out and "control" not in out
    assert not (tmp_path / "ladder.json").exists()
    ladder.main(["report", "--save"])
    assert (tmp_path / "ladder.png").exists()
    saved = json.loads((tmp_path / "ladder.json").read_text())
    assert saved[0] == row and [each["seed"] for each in saved[1:]] == [CHOOSING_SEED] * 2
    # Scored again, the rows are the same, whatever they were.
    paths = sorted(folder.glob("scratch-1x-lr*-seed*[0-9].json"))
    before = [json.loads(path.read_text()) for path in paths]
    for path, kept in zip(paths, before, strict=True):
        path.write_text(json.dumps(kept | {key: 0 for key in ("f", "min_score") if key in kept}))
    ladder.main(["rescore", small_ladder])
    assert [json.loads(path.read_text()) for path in paths] == before
    assert all(row["commit"] == git_commit() for row in before)
    # A detector of another machine counts only with the runs that choose its rate.
    other = row | {"arm": "swapped", "f": 0.1}
    (tmp_path / "ladder.json").write_text(json.dumps([*saved, other]))
    with pytest.raises(SystemExit, match=r"swapped-1x-.*: its rate or threshold is not the best"):
        ladder.main(["rescore", small_ladder])
    out = capsys.readouterr().out
    assert "runs/ladder: 1 of 4 detectors are not here and are not scored again" in out
    assert len(list(folder.glob("*-seed*[0-9].json"))) == 3


def test_the_results_of_another_machine_count(tmp_path, capsys, monkeypatch):
    finish_rates("swapped", 1, tmp_path, best=1e-3)
    finish(Job("swapped", 1, 1e-3, 0), tmp_path, f=0.4, min_score=0.8, backbone="a")
    monkeypatch.setattr(ladder, "FOLDER", tmp_path)
    monkeypatch.setattr(ladder, "PLOT", tmp_path / "ladder.png")
    ladder.main(["report", "--save"])
    there, elsewhere = capsys.readouterr().out, tmp_path / "elsewhere"
    monkeypatch.setattr(ladder, "FOLDER", elsewhere)
    ladder.main(["report"])
    assert capsys.readouterr().out in there and "| swapped | 40.0 (1 seed) |" in there
    assert ladder.next_job("swapped", elsewhere) == Job("swapped", 1, 1e-3, 1)
    elsewhere.mkdir()
    finish(Job("swapped", 1, 1e-3, 0), elsewhere, f=0.5, min_score=0.8)  # scored again there
    assert [row["f"] for row in ladder.scored_rows(elsewhere)] == [0.5]
    (tmp_path / "backbone").write_text("other weights")
    init = ["--arm", "swapped", "--init", str(tmp_path / "backbone")]
    with pytest.raises(SystemExit, match=r"expected the backbone of swapped-1x-lr0\.001-seed"):
        ladder.main(["run", ".", *init])


def test_a_frozen_backbone_keeps_its_weights_while_the_head_learns(small_ladder, tmp_path, capsys):
    torch.manual_seed(0)
    model = vlpt.VLPT(vlpt.TINY)
    vlpt.export_backbone(model, "backbone.pt")
    ladder.main(["run", small_ladder, "--arm", "frozen-pre-trained", "--init", "backbone.pt"])
    paths = sorted(Path("runs/ladder").glob("frozen-pre-trained-1x-*.pt"))
    assert len(paths) == 3
    detectors = [load_detector(path, "cpu")[0] for path in paths]
    for detector in detectors:
        for name, parameter in detector.backbone.named_parameters():
            assert parameter.equal(model.backbone.get_parameter(name))
    first, other = (detector.head.state_dict() for detector in detectors[:2])
    assert any(not first[key].equal(other[key]) for key in first)
    ladder.main(["report"])
    assert "| frozen-pre-trained | " in capsys.readouterr().out
    ladder.main(["run", small_ladder, "--arm", "frozen-pre-trained", "--init", "backbone.pt"])
    assert "frozen-pre-trained: all detectors are done" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match=r"expected the backbone of swapped, got that of frozen-pre-"
    ):
        ladder.main(["run", small_ladder, "--arm", "swapped", "--init", "backbone.pt"])
    vlpt.export_backbone(vlpt.VLPT(vlpt.TINY), "other.pt")
    with pytest.raises(SystemExit, match=r"--init: expected the backbone of .*-seed.*, got"):
        ladder.main(["run", small_ladder, "--arm", "frozen-pre-trained", "--init", "other.pt"])
    with pytest.raises(SystemExit, match=r"--init: expected the backbone of .*-seed.*, got"):
        ladder.main(["run", small_ladder, "--init", "other.pt"])  # pre-trained, but not as above


def test_controls_have_the_ends_of_the_ladder_and_three_seeds():
    assert list(ladder.budgets_of("scratch")) == [1, 8, 4, 2]
    assert all(ladder.budgets_of(arm) == {1: 3, 8: 3} for arm in ladder.CONTROLS)


def test_differences_are_paired_and_corrected_after_holm():
    values = {
        "scratch": {1: [10.0, 11, 12], 2: [20.0, 21, 19], 8: [30.0, 31, 35]},
        "pre-trained": {1: [20.0, 22, 21], 2: [22.0, 24, 19.6], 8: [33.0, 35, 36, 99]},
    }
    scores = {arm: {b: dict(enumerate(f)) for b, f in by.items()} for arm, by in values.items()}
    found = ladder.differences(scores)
    p = {
        budget: ttest_rel(values["pre-trained"][budget][:3], values["scratch"][budget]).pvalue
        for budget in (1, 2, 8)
    }
    assert p[1] < p[8] < p[2]
    assert (found[1].mean, found[1].p) == pytest.approx((10, 4 * p[1]))
    assert (found[8].mean, found[8].p) == pytest.approx((8 / 3, 3 * p[8]))
    assert (found[2].mean, found[2].p) == pytest.approx((5.6 / 3, 3 * p[8])) and 2 * p[2] < 3 * p[8]
    assert 4 not in found  # not run
    half = t.ppf(0.975, 2) * stdev([10, 11, 9]) / math.sqrt(3)
    assert (found[1].low, found[1].high) == pytest.approx((10 - half, 10 + half))


def test_a_very_small_p_is_not_printed_as_zero():
    scores = {arm: {} for arm in (*ladder.ARMS, *ladder.CONTROLS)}
    scores["scratch"][1] = dict(enumerate([10.0, 11, 12, 13, 14]))
    scores["pre-trained"][1] = dict(enumerate([30.0, 31.1, 31.9, 33, 34]))
    (row,) = [line for line in ladder.to_markdown(scores) if line.startswith("| 2,400 |")]
    assert row.endswith("| +20.0 | 19.9 to 20.1 | below 0.001 |")


def test_the_second_table_has_the_other_arms_that_were_run():
    scores = {arm: {} for arm in (*ladder.ARMS, *ladder.CONTROLS)}
    scores["swapped"][1] = {0: 10.0, 1: 11.0, 2: 12.0}
    head, _, row = ladder.to_markdown(scores)[-3:]
    assert head == "| other arm | 2,400 crops | 19,200 crops |"
    assert row == "| swapped | 11.0 ± 1.0 | not run |"


def test_the_number_of_a_photograph_is_in_its_name_in_capitals_or_not():
    assert [ladder.number_of(name) for name in ("img_12", "IMG_700")] == [12, 700]


def test_recalibrated_statistics_are_averages_over_crops(monkeypatch):
    monkeypatch.setattr(ladder, "CALIBRATION_BATCHES", 3)
    model = ladder.build_detector(ladder.CONFIG)
    batches = [torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8) for _ in range(3)]
    monkeypatch.setattr(ladder, "load_batches", lambda *_, **__: [(b, b, b) for b in batches])
    norm = model.backbone.bn1
    momentum, seen = norm.momentum, []
    norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].mean((0, 2, 3))))
    ladder.recalibrate(model, None)
    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0))
    assert norm.momentum == momentum


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="expected scored detectors, got none"):
        ladder.main(["report"])
    with pytest.raises(
        SystemExit, match="--init: expected a backbone or the folder of a finished run"
    ):
        ladder.main(["run", ".", "--init", "nothing"])
    with pytest.raises(SystemExit, match="--arm swapped: expected --init with its backbone, got"):
        ladder.main(["run", ".", "--arm", "swapped"])
    with pytest.raises(SystemExit, match=r"--arm frozen-scratch: expected no --init, got b\.pt"):
        ladder.main(["run", ".", "--arm", "frozen-scratch", "--init", "b.pt"])
