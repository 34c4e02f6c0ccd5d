"""Tests of experiments/record.py."""

import json

import pytest

from experiments import record


def write_run(folder, *gains):
    folder.mkdir()
    rows = [{"kind": "step", "samples": 64, "char": 1.0, "contrastive": 1.0}]
    shares = dict.fromkeys(("acc_right", "acc_other", "i2t", "t2i"), 0.5) | {"pictures": 16}
    for k, gain in enumerate(gains, start=1):  # 100 pictures each, the first ones in 2 s
        row = {"kind": "evaluation", "samples": 100 * k, "gain": gain, "img_s": 50 * k}
        rows.append(row | shares)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_time_of_a_gain_is_interpolated_between_evaluations(tmp_path):
    curve = record.read_curve(write_run(tmp_path / "a", 0.1, 0.2, 0.6))
    assert curve == [(0, 0, 0), (2, 100, 0.1), (3, 200, 0.2), (pytest.approx(11 / 3), 300, 0.6)]
    assert record.reach(curve, 0.15) == (2.5, 150)
    assert record.reach(curve, 0.05) == (1, 50)
    assert record.reach(curve, 0.7) is None


def test_several_runs_give_a_mean_and_a_spread(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.25, 0.75)]
    record.main([str(run) for run in runs])
    assert capsys.readouterr().out == (
        "2 runs: gain 0.5 after 2 ± 0 s and 125 ± 35 pictures; "
        "in the end a gain of 0.625 ± 0.177 after 2 ± 1 s\n"
    )


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="expected the folder of a run"):
        record.main([str(tmp_path)])
    run = write_run(tmp_path / "a", 0.1, 0.3, 0.2)
    with pytest.raises(
        SystemExit, match=r"expected a gain of 0\.5 at some time, got at most 0\.300"
    ):
        record.main([str(run)])


def test_a_gain_of_zero_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        record.main([str(write_run(tmp_path / "a", 0.0, 0.3)), "--gain", "0"])
    assert "--gain: expected a number above 0 and below 1, got '0'" in capsys.readouterr().err


def test_a_damaged_line_of_a_log_is_named(tmp_path):
    path = write_run(tmp_path / "a", 0.6) / "log.jsonl"
    log = path.read_text()
    path.write_text(log + '{"samples": 16}\n')
    with pytest.raises(SystemExit, match=r"log\.jsonl:3: expected what .* damaged file"):
        record.main([str(path.parent)])
    path.write_text(log.replace("img_s", "speed"))
    with pytest.raises(SystemExit, match=r"log\.jsonl: expected what .* damaged file"):
        record.main([str(path.parent)])


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "a", 0.1, 0.6)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "sam')
    record.main([str(run)])
    out = capsys.readouterr().out
    assert "a: line 4 of log.jsonl, its last, was cut short" in out
    assert "in the end a gain of 0.600" in out
