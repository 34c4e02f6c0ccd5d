"""Tests of experiments/bench_min.py: it runs, and what it prints is of the right size."""

import json
import subprocess
import sys

import pytest

import data_stub
from experiments import bench_min

SMALL = ["--size", "64", "--batch", "4", "--pictures", "12", "--workers", "1"]


@pytest.fixture(scope="module")
def synthtext(tmp_path_factory):
    root = tmp_path_factory.mktemp("st")
    data_stub.write_synthtext(root, 30, seed=0, size=64)
    return root


class TestData:
    def test_builds_the_index_anew_and_says_what_opening_costs(self, synthtext):
        data_stub.SynthText(synthtext)
        index = synthtext / "gt.mat.index"
        before = index.stat().st_mtime_ns
        command = [sys.executable, bench_min.__file__, "data", "--json", *SMALL]
        done = subprocess.run(
            [*command, "--data", f"synthtext:{synthtext}"],
            cwd=synthtext, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert index.stat().st_mtime_ns > before
        assert (found["pictures"], found["args"]["workers"]) == (27, 1)
        assert 0 < found["start_s"] < 10 and 0 < found["index_s"] < 60
        assert found["images_s_worker"] > 1 and found["pillow_images_s"] > 1
        if sys.platform == "linux":
            assert found["before_mb"] > 50 and found["index_mb"] > 50
            assert len(found["workers_mb"]) == 1 and found["workers_mb"][0] > 5
            total = found["parent_mb"] + found["workers_mb"][0] - found["before_mb"]
            assert found["added_mb"] == pytest.approx(total)

    def test_prints_a_line_a_figure_and_keeps_an_index(self, synthtext, monkeypatch, capsys):
        monkeypatch.setattr(bench_min, "apart", lambda function, *args: function(*args))
        data_stub.SynthText(synthtext)
        before = (synthtext / "gt.mat.index").stat().st_mtime_ns
        bench_min.main(["data", "--data", f"synthtext:{synthtext}", "--keep-index", *SMALL])
        assert (synthtext / "gt.mat.index").stat().st_mtime_ns == before
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert {"start_s", "added_mb", "images_s_worker"} <= set(names) and "index_s" not in names

    def test_says_how_fast_pictures_are_drawn(self, monkeypatch, capsys):
        monkeypatch.setattr(bench_min, "apart", lambda function, *args: function(*args))
        monkeypatch.setattr(bench_min, "draw", lambda count, draw=bench_min.draw: draw(3))
        bench_min.main(["data", "--json", *SMALL])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["rendered_256_s"] > 1 and "pillow_images_s" not in found

    def test_a_mistake_is_one_line(self, monkeypatch, capsys):
        monkeypatch.setattr(bench_min, "apart", lambda function, *args: function(*args))
        with pytest.raises(SystemExit, match=r"bench_min\.py: error: nowhere: not found"):
            bench_min.main(["data", "--data", "jsonl:nowhere"])
        with pytest.raises(SystemExit):
            bench_min.main(["data", "--pictures", "4", "--batch", "4"])
        assert "--pictures must be more than one --batch" in capsys.readouterr().err
