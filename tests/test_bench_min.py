"""Tests of experiments/bench_min.py: it runs, and what it prints is of the right size."""

import argparse
import copy
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

import data_stub
import vlpt
from experiments import bench_min, recompute_min

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
        assert "--pictures must be above --batch" in capsys.readouterr().err


TINY = argparse.Namespace(preset="tiny", batch=4, repeats=1, device="cpu", bf16=False)
BRIEF = ["--preset", "tiny", "--batch", "4", "--repeats", "1"]


def run(tmp_path, capsys, command: str) -> tuple[dict, str]:
    bench_min.main([command, *BRIEF, "--json", str(tmp_path / "f.json")])
    return json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out


class TestModel:
    def test_step_over_bare_backbone_and_shares(self, tmp_path, capsys):
        found, out = run(tmp_path, capsys, "step")
        assert found["ratio_least"] <= found["ratio"] <= found["ratio_most"]
        assert 0 < found["bare_s"] and 0 < found["step_s"] and 0 < found["ratio"]
        assert 1 < found["arithmetic_ratio"] < 2 and 0.1 < found["gflop_image"] < 1
        assert tuple(found["shares"]) == bench_min.STAGES
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in found["shares"].values())
        three = sum(found["shares"][name] for name in ("text", "decoder", "losses"))
        assert found["text_side"] == pytest.approx(three)
        assert torch.__version__ in found["machine"] and found["args"]["batch"] == 4
        assert "arithmetic_ratio" in out and "  backbone" in out and found["machine"] in out

    def test_cutting_the_step_into_stages_changes_no_gradient(self):
        whole, cut = bench_min.Job(TINY), bench_min.Job(TINY)
        for job in (whole, cut):
            torch.nn.init.ones_(job.model.backbone["layer3"][0].bn3.weight)
            job.update = lambda: None
        whole.step()
        seconds = bench_min.Stages(cut).step()
        assert tuple(seconds) == bench_min.STAGES and sum(seconds.values()) > 0
        for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        assert not any(module._forward_hooks for module in cut.model.modules())

    def test_a_batch_has_the_preset_s_words_cut_to_three_an_image(self):
        args = argparse.Namespace(**vars(TINY) | {"preset": "oclip_rn50", "batch": 40})
        job = bench_min.Job(args, replace(vlpt.TINY, alphabet=vlpt.PRINTABLE), words=None)
        words, lengths = (job.ids != vlpt.PAD).any(1).sum(1), (job.ids != vlpt.PAD).sum(1)
        assert set(words.tolist()) == {1, 2, 3} and (job.ids == vlpt.MASK).sum() == words.sum()
        assert lengths[lengths > 0].min() == 2 and lengths.max() == 10 and job.ids.max() > 50

    def test_variants_take_turns_and_a_round_to_warm_up_is_left_out(self):
        calls = []
        found = bench_min.take_turns(
            {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or {"x": 1}}, 2, "cpu"
        )
        assert calls == ["a", "b"] * 3
        assert len(found["a"]) == 2 and found["b"] == [{"x": 1}] * 2 and min(found["a"]) >= 0

    def test_scale_is_over_the_preset(self, tmp_path, capsys):
        found, out = run(tmp_path, capsys, "scale")
        assert found["cost"]["as it is"] == 1 and len(found["cost"]) == 8
        assert all(0.1 < cost < 30 for cost in found["cost"].values())
        assert "alphabet of 5000" in out

    def test_memory_is_measured_computed_and_turned_into_batches(
        self, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(bench_min, "apart", lambda function, *args: function(*args))
        found, _ = run(tmp_path, capsys, "memory")
        for kind in ("float32", "bf16"):
            plain, again = (found[f"{name}_{kind}_image_mb"] for name in ("plain", "recomputed"))
            assert 0 < again < plain
            each, fits = plain * 1e6, found[f"plain_{kind}_fits"]
            assert fits["80 GB"] - fits["16 GB"] == pytest.approx(0.9 * 64e9 / each, abs=2)
        assert found["plain_bf16_image_mb"] < 0.8 * found["plain_float32_image_mb"]
        weights = sum(p.numel() for p in vlpt.VLPT(vlpt.TINY).parameters()) * 16 / 1e9
        assert found["plain_float32_computed_gb"] > weights  # gradient, two moments
        if sys.platform == "linux":
            assert found["plain_measured_gb"] >= 0

    def test_the_ledger_counts_each_byte_once_and_forgets_the_dead(self):
        with bench_min.Ledger() as ledger:
            a = torch.zeros(1000)
            b = a.view(10, 100)[2:]  # the same bytes
            c = torch.ones(500, dtype=torch.bfloat16)
            assert ledger.now == 5000
            del c
            x = (a * 2).relu_()  # in place
            assert (ledger.now, ledger.peak) == (8000, 8000)
            del a
            assert ledger.now == 8000  # b holds them
            del b, x
            assert (ledger.now, ledger.peak) == (0, 8000)

    def test_start_ends_at_the_first_step(self, tmp_path, capsys):
        found, _ = run(tmp_path, capsys, "start")
        assert 0 < found["import_torch_s"] < 120 and 0 < found["start_s"] < 120

    @pytest.mark.parametrize(
        ("options", "message"),
        [(["step", "--batch", "0"], "--batch and --repeats must be at least 1"),
         (["step", "--preset", "huge"], "invalid choice: 'huge'"),
         (["speed"], "invalid choice: 'speed'")],
    )  # fmt: skip
    def test_a_mistake_is_one_line(self, capsys, options, message):
        with pytest.raises(SystemExit) as stop:
            bench_min.main(options)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and message in err.splitlines()[-1]
        assert "Traceback" not in err

    def test_what_stops_train_min_is_one_line(self, monkeypatch):
        monkeypatch.setattr(bench_min, "FIRST_STEP", "raise SystemExit('no disk')")
        with pytest.raises(
            SystemExit, match=r"bench_min\.py: error: train_min\.py stopped: no disk"
        ):
            bench_min.main(["start", *BRIEF])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
    def test_a_gpu_that_is_not_there_is_named(self, capsys):
        with pytest.raises(SystemExit):
            bench_min.main(["step", "--device", "cuda"])
        assert "--device: got cuda, but torch finds no GPU" in capsys.readouterr().err


class TestRecomputed:
    """Gradient checkpointing."""

    backbones = pytest.mark.parametrize(
        ("name", "size"), [("clip_resnet", {"width": 8, "layers": (1, 2, 2, 1)}), ("resnet18", {})]
    )

    @backbones
    def test_maps_gradients_and_running_statistics_are_the_same_bit_by_bit(self, name, size):
        torch.manual_seed(0)
        plain = vlpt.build_backbone(name, **size)
        again, x = recompute_min.Recomputed.of(copy.deepcopy(plain)), torch.randn(3, 3, 64, 64)
        for _ in range(2):  # two steps: statistics have moved
            for net in (plain, again):
                sum(y.square().mean() for y in net(x)).backward()
        assert all(torch.equal(a, b) for a, b in zip(plain(x), again(x), strict=True))
        for (k, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), k
        theirs = again.state_dict()
        assert list(theirs) == list(plain.state_dict())
        assert all(torch.equal(v, theirs[k]) for k, v in plain.state_dict().items())

    @backbones
    def test_evaluation_changes_no_statistics(self, name, size):
        net = recompute_min.Recomputed.of(vlpt.build_backbone(name, **size)).eval()
        before = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def test_each_stage_runs_twice_and_its_inside_is_not_kept(self):
        net = recompute_min.Recomputed.of(vlpt.build_backbone("resnet18"))
        runs, kept = defaultdict(int), []
        for name in ("conv1", "layer1", "layer4"):
            net[name].register_forward_pre_hook(
                lambda *_, name=name: runs.update({name: runs[name] + 1})
            )
        x = torch.randn(2, 3, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = net(x)[-1].mean()
        assert runs == {"conv1": 1, "layer1": 1, "layer4": 1} and len(kept) < 10
        loss.backward()
        assert runs == {"conv1": 2, "layer1": 2, "layer4": 2}

    def test_the_export_is_that_of_the_plain_backbone(self, tmp_path):
        plain = vlpt.build_backbone("resnet18")
        vlpt.export_backbone(recompute_min.Recomputed.of(plain), tmp_path / "b.pt")
        again = vlpt.load_backbone(tmp_path / "b.pt", "resnet18").state_dict()
        assert all(torch.equal(v, again[k]) for k, v in plain.state_dict().items())
