"""Tests of experiments/bench.py: it runs, and what it prints is of the right size."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import vlpt
from experiments import bench, fake_synthtext
from readers import SynthText

SMALL = ["--size", "64", "--batch", "4", "--pictures", "12", "--workers", "1"]


@pytest.fixture(scope="module")
def synthtext(tmp_path_factory):
    root = tmp_path_factory.mktemp("st")
    fake_synthtext.write_synthtext(root, 30, seed=0, size=64)
    return root


class TestData:
    @pytest.mark.slow
    def test_builds_the_index_anew_and_says_what_opening_costs(self, synthtext, tmp_path):
        SynthText(synthtext)
        index = synthtext / "gt.mat.index"
        before = index.stat().st_mtime_ns
        file = tmp_path / "found.json"
        command = [sys.executable, "-m", "experiments.bench", "data", *SMALL, "--json", file]
        done = subprocess.run(
            [*command, "--data", f"synthtext:{synthtext}"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(file.read_text())
        names = [line.split()[0] for line in done.stdout.splitlines()]
        assert {"start_s", "added_mb", "images_s_worker", "index_s"} <= set(names)
        assert index.stat().st_mtime_ns > before
        assert (found["pictures"], found["args"]["workers"]) == (27, 1)
        assert 0 < found["start_s"] < 10 and 0 < found["index_s"] < 60
        assert found["images_s"] == pytest.approx(found["images_s_worker"])  # of one worker
        assert found["images_s_worker"] > 1 and found["pillow_images_s"] > 1
        if sys.platform == "linux":
            assert found["before_mb"] > 50 and found["index_mb"] > 50
            assert len(found["workers_mb"]) == 1 and found["workers_mb"][0] > 5
            total = found["parent_mb"] + found["workers_mb"][0] - found["before_mb"]
            assert found["added_mb"] == pytest.approx(total)

    def test_prints_a_line_for_each_figure(self, synthtext, monkeypatch, capsys):
        monkeypatch.setattr(bench, "in_subprocess", lambda function, *args: function(*args))
        bench.main(["data", "--data", f"synthtext:{synthtext}", *SMALL])
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert {"index_s", "start_s", "added_mb", "images_s_worker", "added_by_few_mb"} <= set(
            names
        )

    def test_says_how_fast_pictures_are_drawn(self, monkeypatch, capsys):
        monkeypatch.setattr(bench, "in_subprocess", lambda function, *args: function(*args))
        monkeypatch.setattr(bench, "draw", lambda count, draw=bench.draw: draw(3))
        bench.main(["data", *SMALL])
        lines = capsys.readouterr().out.splitlines()
        found = {line.split()[0]: line.split()[-1] for line in lines}
        assert float(found["rendered_256_s"]) > 1 and "pillow_images_s" not in found

    def test_a_mistake_is_one_line(self, monkeypatch, capsys):
        monkeypatch.setattr(bench, "in_subprocess", lambda function, *args: function(*args))
        with pytest.raises(SystemExit, match=r"bench: error: nowhere: expected .*got no such file"):
            bench.main(["data", "--data", "jsonl:nowhere"])
        with pytest.raises(SystemExit):
            bench.main(["data", "--pictures", "4", "--batch", "4"])
        assert "--pictures: expected more than a batch of 4" in capsys.readouterr().err


TINY = argparse.Namespace(preset="tiny", batch=4, repeats=1, device="cpu", bf16=False)
BRIEF = ["--preset", "tiny", "--batch", "4", "--repeats", "1"]


def run(tmp_path, capsys, command: str) -> tuple[dict, str]:
    bench.main([command, *BRIEF, "--json", str(tmp_path / "f.json")])
    return json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out


class TestModel:
    def test_step_over_bare_backbone_and_shares(self, tmp_path, capsys):
        found, out = run(tmp_path, capsys, "step")
        assert found["ratio_min"] <= found["ratio"] <= found["ratio_max"]
        assert 0 < found["bare_s"] and 0 < found["step_s"] and 0 < found["ratio"]
        assert 1 < found["arithmetic_ratio"] < 2 and 0.1 < found["gflop_image"] < 1
        assert tuple(found["shares"]) == bench.STAGES
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in found["shares"].values())
        three = sum(found["shares"][name] for name in ("text", "decoder", "losses"))
        assert found["text_side"] == pytest.approx(three)
        assert torch.__version__ in found["machine"] and found["args"]["batch"] == 4
        assert "arithmetic_ratio" in out and "  backbone" in out and found["machine"] in out

    def test_cutting_the_step_into_stages_changes_no_gradient(self):
        whole, cut = bench.Job(TINY), bench.Job(TINY)
        for job in (whole, cut):
            torch.nn.init.ones_(job.model.backbone.stages[-1][0].bn3.weight)
            job.update = lambda: None
        whole.step()
        seconds = bench.Stages(cut).step()
        assert tuple(seconds) == bench.STAGES and sum(seconds.values()) > 0
        for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        assert not any(module._forward_hooks for module in cut.model.modules())

    def test_a_batch_has_the_preset_s_words_cut_to_three_an_image(self):
        args = argparse.Namespace(**vars(TINY) | {"preset": "oclip_rn50", "batch": 40})
        job = bench.Job(args, replace(vlpt.TINY, alphabet=vlpt.PRINTABLE), words=None)
        words, lengths = (job.ids != vlpt.PAD).any(1).sum(1), (job.ids != vlpt.PAD).sum(1)
        assert set(words.tolist()) == {1, 2, 3} and (job.ids == vlpt.MASK).sum() == words.sum()
        assert lengths[lengths > 0].min() == 2 and lengths.max() == 10 and job.ids.max() > 50

    def test_variants_take_turns_and_a_round_to_warm_up_is_left_out(self):
        calls = []
        found = bench.take_turns(
            {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or {"x": 1}}, 2, "cpu"
        )
        assert calls == ["a", "b"] * 3
        assert len(found["a"]) == 2 and found["b"] == [{"x": 1}] * 2 and min(found["a"]) >= 0

    def test_scale_is_over_the_preset(self, tmp_path, capsys):
        found, out = run(tmp_path, capsys, "scale")
        assert found["cost"]["as it is"] == 1 and len(found["cost"]) == 8
        assert all(0.1 < cost < 30 for cost in found["cost"].values())
        assert "alphabet of 5000" in out

    def test_memory_is_measured_with_and_without_recomputation(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(bench, "in_subprocess", lambda function, *args: function(*args))
        found, out = run(tmp_path, capsys, "memory")
        assert "plain_gb" in out and "recomputed_gb" in out
        if sys.platform == "linux":
            assert found["plain_gb"] >= 0 and found["recomputed_gb"] >= 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["step", "--batch", "0"], "--batch: expected a whole number of at least 1, got '0'"),
            (["step", "--preset", "huge"], "invalid choice: 'huge'"),
            (["speed"], "invalid choice: 'speed'"),
        ],
    )
    def test_a_mistake_is_one_line(self, capsys, options, message):
        with pytest.raises(SystemExit) as stop:
            bench.main(options)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and message in err.splitlines()[-1]
        assert "Traceback" not in err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
    def test_a_gpu_that_is_not_there_is_named(self, capsys):
        with pytest.raises(SystemExit):
            bench.main(["step", "--device", "cuda"])
        assert "--device: expected cpu, as torch finds no GPU, got cuda" in capsys.readouterr().err
