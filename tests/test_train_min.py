"""Tests of train_min.py: its parts on cases with known answers, then whole runs in a folder."""

import dataclasses
import itertools
import json
import math
import shutil
import sys
import unicodedata
from urllib.error import URLError

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data_stub
import train_min
import vlpt
from experiments import run_min

QUICK = ["--samples", "32", "--batch", "8", "--eval", "16", "--workers", "0", "--name", "t"]
AGAIN = [*QUICK, "--overwrite"]


def steps_of(folder):
    """The steps in a run's log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "step"]


class Seer(torch.nn.Module):
    """A stand-in for a model that reads perfectly: pixel (0, 0) holds the hidden character."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.log_scale, self.vocabulary = torch.nn.Parameter(torch.zeros(())), vocabulary

    def forward(self, images, ids, masked_only=False):
        unit = 1 / 255 / vlpt.PIXEL_STD[0]
        seen = ((images[:, 0, 0, 0] + vlpt.PIXEL_MEAN[0] / vlpt.PIXEL_STD[0]) / unit).round().long()
        logits = torch.nn.functional.one_hot(seen, self.vocabulary).float()
        word = torch.nn.functional.one_hot(ids[:, 1, 0], self.vocabulary).float()
        image = torch.nn.functional.one_hot(seen, self.vocabulary).float()
        return vlpt.Output(image, word, logits[:, None, None].expand(-1, 25, 3, -1), self.log_scale)


def seer_batch(characters: list[int]) -> data_stub.Batch:
    """Words of twice the same character, so that either may be hidden and the other tells it."""
    ids = torch.zeros(len(characters), 25, 3, dtype=torch.long)
    images = torch.zeros(len(characters), 3, 4, 4, dtype=torch.uint8)
    for b, character in enumerate(characters):
        ids[b, 0, 0] = character
        images[b, 0] = character
    return data_stub.Batch(images, ids, [])


class TestParts:
    def test_learning_rate_warms_up_and_falls_to_zero(self):
        rates = [train_min.lr_at(step, 1000, 100) for step in range(1000)]
        assert rates[0] == pytest.approx(1 / 101) and max(rates) <= 1
        assert np.argmax(rates) == pytest.approx(100, abs=2)
        assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
        assert rates[-1] < 1e-4
        assert train_min.lr_at(500, 1000, 0) == pytest.approx(0.5)

    def test_only_matrices_decay(self):
        model = vlpt.VLPT(vlpt.TINY)
        decayed, kept = train_min.make_optimizer(model, 1e-3, 0.1).param_groups
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
        names = {id(p): name for name, p in model.named_parameters()}
        assert {names[id(p)] for p in kept["params"]} == {
            n for n in names.values()
            if n.endswith("bias") or "ln_" in n or ".bn" in n or "downsample.1." in n
            or n == "log_scale"
        }  # fmt: skip
        assert len(decayed["params"]) + len(kept["params"]) == len(names)

    def test_evaluation_tells_reading_from_guessing(self):
        model = Seer(13)
        result = train_min.evaluate(model, [seer_batch([3, 4, 5]), seer_batch([6, 7])], seed=0)
        assert (result["acc_right"], result["acc_other"], result["gain"]) == (1, 0, 1)
        assert (result["pictures"], result["characters"]) == (5, 5)
        assert model.training  # as before

    def test_another_picture_with_the_same_character_counts_as_guessed(self):
        result = train_min.evaluate(Seer(13), [seer_batch([3, 3, 3, 4])], seed=0)
        assert (result["acc_right"], result["acc_other"]) == (1, 0.5)

    def test_retrieval_counts_nearest_neighbours_both_ways(self):
        class Paired(Seer):
            def forward(self, images, ids, masked_only=False):
                eye = torch.eye(4)
                text = eye[[0, 1, 3, 3]]  # the third text is the fourth picture's twin
                return super().forward(images, ids)._replace(image=eye, text=text)

        result = train_min.evaluate(Paired(13), [seer_batch([3, 4, 5, 6])], seed=0)
        assert result["t2i"] == 0.75
        assert 0.5 <= result["i2t"] <= 0.75  # two texts tie for the fourth picture

    def test_a_batch_too_small_to_compare_is_left_out_and_none_left_is_an_error(self):
        result = train_min.evaluate(Seer(13), [seer_batch([3]), seer_batch([4, 5])], seed=0)
        assert (result["pictures"], result["unreadable"]) == (2, 1)
        told = "no two held-out pictures of a batch can be read; b was cut"
        with pytest.raises(ValueError, match=told):
            lone = seer_batch([3])._replace(skipped=["b was cut"])
            train_min.evaluate(Seer(13), [lone], seed=0)

    def test_a_loss_that_is_not_finite_stops(self):
        model = vlpt.VLPT(vlpt.TINY)
        with torch.no_grad():
            model.head.bias.fill_(float("nan"))
        optimizer = train_min.make_optimizer(model, 1e-3, 0.1)
        before = [value.clone() for value in model.state_dict().values()]
        ids = vlpt.Alphabet("0123456789").encode(["12"])[None].repeat(2, 1, 1)
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        with pytest.raises(train_min.Nonfinite, match=r"char nan, .*norm nan"):
            train_min.train_step(model, optimizer, images, *vlpt.mask_one_char(ids))
        after = model.state_dict().values()  # weights and running statistics are as before
        assert all(a.equal(b) for a, b in zip(before, after, strict=True) if a.isfinite().all())

    def test_a_step_lowers_the_loss_on_its_batch(self):
        torch.manual_seed(0)
        model = vlpt.VLPT(vlpt.TINY)
        optimizer = train_min.make_optimizer(model, 1e-3, 0.0)
        ids = torch.stack([vlpt.Alphabet("0123456789").encode([str(k) * 3]) for k in range(8)])
        images = torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8)
        masked = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        rows = [train_min.train_step(model, optimizer, images, *masked) for _ in range(12)]
        assert rows[-1]["char"] < 0.8 * rows[0]["char"]
        assert rows[-1]["contrastive"] < rows[0]["contrastive"]


class TestAccumulate:
    @pytest.mark.parametrize("contrastive", [True, False])
    @pytest.mark.parametrize("pieces", [2, 3, 5])
    def test_the_gradient_in_pieces_is_the_whole_batch_s(self, pieces, contrastive, monkeypatch):
        """With the same statistics, here the running ones; what plain accumulation does not do."""
        config = dataclasses.replace(vlpt.TINY, contrastive=contrastive)
        torch.manual_seed(0)
        model = vlpt.VLPT(config).eval().double()
        words = [["12"], [], ["345", "6"], ["7"], ["89", "0"]]
        ids = torch.stack([vlpt.Alphabet("0123456789").encode(w) for w in words])
        batch = torch.randn(5, 3, 64, 64).double(), *vlpt.mask_one_char(ids)
        monkeypatch.setattr(train_min, "run_model", lambda m, x, i: m(x, i, masked_only=True))
        found = []
        for backward in (train_min.whole_backward, train_min.cached_backward):
            model.zero_grad()
            more = () if backward is train_min.whole_backward else (pieces,)
            told = backward(model, *batch, *more)
            found.append((told, [p.grad.clone() for p in model.parameters()]))
        (told, gradients), (told_again, again) = found
        torch.testing.assert_close(told_again, told, rtol=1e-12, atol=0)
        for a, b in zip(again, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert told[1] > 0 if contrastive else told[1] == 0

    def test_running_statistics_move_once_a_piece(self):
        torch.manual_seed(0)
        model = vlpt.VLPT(vlpt.TINY)
        ids = torch.stack([vlpt.Alphabet("0123456789").encode([str(k) * 2]) for k in range(4)])
        images = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
        train_min.cached_backward(model, images, *vlpt.mask_one_char(ids), 2)
        assert model.backbone["bn1"].num_batches_tracked == 2  # and not 4


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a run, the same for all tests that only read it."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_min.main(QUICK)
    return folder / "runs" / "t"


class TestRuns:
    @pytest.fixture(autouse=True)
    def in_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.out = tmp_path / "runs" / "t"

    def test_leaves_everything_it_promises(self, capsys):
        train_min.main(QUICK)
        lines = capsys.readouterr().out.splitlines()
        chance = next(line for line in lines if "chance" in line).split()
        assert (chance[1], chance[2]) == (f"{math.log(13):.3f}", f"{2 * math.log(8):.3f}")
        names = set(run_min.FILES) - {"nonfinite.json"}
        assert {path.name for path in self.out.iterdir()} == names
        for picture in ("loss.png", "attention.png"):
            with Image.open(self.out / picture) as image:
                assert image.width > 300 and np.asarray(image.convert("L")).std() > 10
        result = dict(pair.split("=") for pair in lines[-1].removeprefix("RESULT ").split())
        metrics = json.loads((self.out / "metrics.json").read_text())
        assert metrics["result"]["samples"] == int(result["samples"]) == 32
        assert result["acc_right"] == f"{metrics['evaluations'][-1]['acc_right']:.3f}"
        assert [row["samples"] for row in steps_of(self.out)] == [8, 16, 24, 32]
        assert 0 < metrics["result"]["wait"] < 1
        head = next(line for line in lines if line.endswith("  wait"))
        rows = [line for line in lines if line.count("|") == 1 and line != head]
        assert len(rows) == 4 and {len(row) for row in rows} == {len(head)}

    def test_waiting_is_a_share_of_the_steps_time(self):
        log = run_min.Log((1.0, 1.0))
        assert log.wait() == 0.0
        log.seconds += [(3.0, 4.0), (1.0, 4.0)]
        assert (log.wait(), log.wait(1)) == (0.5, 0.25)

    def test_images_a_second_are_those_of_the_steps(self):
        log = run_min.Log((1.0, 1.0))
        log.start -= 1000  # evaluations, say
        log.seconds += [(0.5, 1.0), (0.5, 3.0)]
        result = dict.fromkeys(("acc_right", "acc_other", "i2t", "t2i"), 0.0)
        assert log.evaluation(80, result).split()[-2:] == ["20", "0.25"]

    def test_a_full_gpu_is_one_line(self, monkeypatch):
        def full(*_):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(train_min, "train_step", full)
        with pytest.raises(
            SystemExit, match="GPU's memory is full; wanted a smaller --batch, --ac"
        ):
            train_min.main(QUICK)

    def test_the_backbone_is_the_checkpoint_s_and_nothing_else(self, quick):
        shutil.copytree(quick, self.out)
        checkpoint = torch.load(self.out / "checkpoint.pt", weights_only=True)
        assert checkpoint["step"] == 4 and checkpoint["args"]["batch"] == 8
        config = vlpt.Config(**checkpoint["config"])
        model = vlpt.VLPT(config)
        model.load_state_dict(checkpoint["state_dict"])
        backbone = vlpt.load_backbone(
            self.out / "backbone.safetensors", config.backbone, **config.backbone_size
        )
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(backbone.state_dict()[key], value)

    def test_the_product_says_how_it_was_made_and_the_command_says_the_same(
        self, quick, monkeypatch
    ):
        shutil.copytree(quick, self.out)
        monkeypatch.setattr(sys, "argv", ["vlpt.py", "export", "runs/t", "again.safetensors"])
        vlpt.main()
        said = []
        for path in (self.out / "backbone.safetensors", "again.safetensors"):
            with safetensors.safe_open(path, "pt") as file:
                said.append(file.metadata())
        assert said[0] == said[1]
        assert (said[0]["training_data"], said[0]["steps"]) == ("synth", "4")
        assert said[0]["alphabet_size"] == "10"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        path = train_min.Path("runs") / name / "checkpoint.pt"
        return torch.load(path, weights_only=True)["state_dict"]

    @pytest.mark.parametrize(
        ("file", "said"),
        [("backbone.safetensors", "backbone only"), ("mmocr.pt", "backbone only"),
         ("checkpoint.pt", "backbone and pool"), ("", "backbone and pool"),
         ("wide.pt", "backbone only, its pool has other")],
    )  # fmt: skip
    def test_init_starts_from_what_a_run_left(self, quick, file, said, capsys):
        shutil.copytree(quick, self.out)
        first = self.weights("t")
        model = vlpt.VLPT(vlpt.TINY)
        model.load_state_dict(first)
        vlpt.export_backbone(model, self.out / "mmocr.pt", "mmocr")
        wide = {
            k: v[:, :1] if k.startswith("pool.") and v.ndim > 1 else v for k, v in first.items()
        }
        torch.save({"state_dict": wide}, self.out / "wide.pt")
        capsys.readouterr()
        still = [*QUICK, "--lr", "1e-12", "--weight-decay", "0", "--name", "u"]
        train_min.main([*still, "--init", f"runs/t/{file}"])
        assert f"started from runs/t/{file}: {said}" in capsys.readouterr().out
        second = self.weights("u")
        torch.manual_seed(0)
        fresh = vlpt.VLPT(vlpt.TINY).state_dict()  # what --seed 0 draws with and without --init
        for key, value in second.items():
            if "running" in key or "batches" in key:
                continue
            loaded = key.startswith("backbone.") or (said.endswith("pool") and "pool." in key)
            torch.testing.assert_close(value, (first if loaded else fresh)[key], rtol=0, atol=1e-9)

    def test_init_from_torchvision_s_own_weights(self, monkeypatch, capsys):
        ours, get_model = {}, torchvision.models.get_model

        def with_weights(name, weights):
            model = get_model(name, weights=None)
            if weights == "DEFAULT":
                ours.update(model.state_dict())
            return model

        monkeypatch.setattr(torchvision.models, "get_model", with_weights)
        options = ["--backbone", "resnet18", "--init", "torchvision", "--lr", "1e-12"]
        train_min.main([*QUICK, *options])
        assert "started from torchvision: backbone only" in capsys.readouterr().out
        got = self.weights("t")["backbone.layer4.1.conv2.weight"]
        torch.testing.assert_close(got, ours["layer4.1.conv2.weight"], rtol=0, atol=1e-9)

    def test_init_from_torchvision_without_a_network_is_one_line(self, monkeypatch):
        get_model = torchvision.models.get_model

        def offline(name, weights):
            if weights:
                raise URLError("Name or service not known")
            return get_model(name, weights=None)

        monkeypatch.setattr(torchvision.models, "get_model", offline)
        with pytest.raises(
            SystemExit, match=r"error: --init torchvision: cannot fetch .*not known"
        ):
            train_min.main([*QUICK, "--backbone", "resnet18", "--init", "torchvision"])
        assert not self.out.exists()

    def test_init_without_its_package_is_one_line(self, monkeypatch):
        train_min.Path("b.safetensors").touch()
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(SystemExit, match=r"train_min.py: error: .*safetensors"):
            train_min.main([*QUICK, "--init", "b.safetensors"])
        assert not self.out.exists()

    def test_workers_and_repetition_change_nothing(self):
        steps = []
        for workers in ("0", "2", "2"):
            train_min.main([*AGAIN, "--workers", workers])
            steps.append(steps_of(self.out))
        assert steps[0] == steps[1] == steps[2]

    @pytest.mark.parametrize("options", [["--recompute"], ["--accumulate", "4"]])
    def test_less_memory_gives_a_run_of_the_same_kind(self, quick, options):
        shutil.copytree(quick, self.out)
        plain = steps_of(self.out)
        train_min.main([*AGAIN, *options])
        spared = steps_of(self.out)
        assert [row["samples"] for row in spared] == [row["samples"] for row in plain]
        for key in ("char", "contrastive", "norm"):
            same = spared[0][key] == pytest.approx(plain[0][key], rel=1e-3)
            assert same == (options == ["--recompute"])  # pieces have statistics of their own
        model = vlpt.VLPT(vlpt.TINY)
        held = torch.load(self.out / "checkpoint.pt", weights_only=True)
        model.load_state_dict(held["state_dict"])

    def test_another_seed_changes_the_run(self):
        steps = []
        for seed in ("0", "1"):
            train_min.main([*AGAIN, "--seed", seed])
            steps.append(steps_of(self.out))
        assert steps[0] != steps[1]

    def test_tensorboard_when_asked(self):
        train_min.main([*QUICK, "--tensorboard"])
        assert list((self.out / "tensorboard").glob("events.out.tfevents*"))
        held = EventAccumulator(str(self.out / "tensorboard")).Reload().Tags()
        assert "attention" in held["images"] and {"train/char", "heldout/gain"} <= {
            *held["scalars"]
        }

    def test_two_runs_are_compared(self, quick, capsys):
        shutil.copytree(quick, self.out)
        train_min.main([*QUICK, "--seed", "1", "--name", "u"])
        capsys.readouterr()
        train_min.main(["compare", "runs/t", "runs/u"])
        out = capsys.readouterr().out
        assert "--seed" in out and "gain" in out and "--batch" not in out
        with Image.open("runs/compare.png") as image:
            assert image.width > 300
        with pytest.raises(SystemExit, match=r"train_min.py: error: .*nothing"):
            train_min.main(["compare", "runs/t", "runs/nothing"])

    def test_tensorboard_that_is_not_installed_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(SystemExit, match="--tensorboard: needs `pip install tensorboard`"):
            train_min.main([*QUICK, "--tensorboard"])

    def test_words_of_many_scripts_from_file_to_backbone(self, capsys):
        """Chinese, Korean, accents, in both forms: one alphabet, one spelling, kept in the file."""
        words = ["出口", "한국어", "Émile", "naïve", "北京大学"]
        lines = []
        for k in range(40):
            Image.new("RGB", (64, 64), (6 * k, 99, 0)).save(f"{k}.png")
            form = ("NFC", "NFD")[k % 2]
            each = [unicodedata.normalize(form, words[(k + j) % 5]) for j in range(4)]
            lines.append(json.dumps({"image": f"{k}.png", "words": each}, ensure_ascii=k % 3 == 0))
        data_stub.Path("d.jsonl").write_text("\n".join(lines), encoding="utf-8")
        train_min.main([*QUICK, "--data", "jsonl:d.jsonl", "--alphabet", "data"])
        checkpoint = torch.load(self.out / "checkpoint.pt", weights_only=True)
        chars = checkpoint["config"]["alphabet"]
        assert set(chars) == set("".join(words)) and len(chars) == 18
        assert f"{math.log(len(chars) + 3):.3f}" in capsys.readouterr().out
        vlpt.VLPT(vlpt.Config(**checkpoint["config"])).load_state_dict(checkpoint["state_dict"])
        source, alphabet = data_stub.JsonLines("d.jsonl"), vlpt.Alphabet(chars)
        data = data_stub.Pretraining(source, alphabet, 64, seed=0)
        ids = torch.stack([data[k][1] for k in range(36)])
        assert {w for k in range(36) for w in alphabet.decode(ids[k])} == set(words)
        assert (ids != vlpt.UNK).all() and not data.notes
        _, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        assert ((targets > vlpt.UNK).sum((1, 2)) == 3).all()

    def test_characters_of_a_file_and_unknown_ones(self, capsys):
        data_stub.Path("chars.txt").write_text("e\nt\na", encoding="utf-8")
        data_stub.write_synthtext("st", 40, seed=0, size=64)
        train_min.main([*QUICK, "--data", "synthtext:st", "--alphabet", "chars.txt"])
        out = capsys.readouterr().out
        assert f"{math.log(6):.3f}" in out and "outside the alphabet (kept)" in out
        checkpoint = torch.load(self.out / "checkpoint.pt", weights_only=True)
        assert checkpoint["config"]["alphabet"] == "eta"

    def test_a_subset_and_a_share_of_the_words_are_of_the_training_half(self, capsys, monkeypatch):
        halves = []
        fit = train_min.fit
        monkeypatch.setattr(train_min, "fit", lambda *a: halves.extend(a[1:3]) or fit(*a))
        data_stub.write_synthtext("st", 40, seed=0, size=64)
        options = ["--data", "synthtext:st", "--subset", "7", "--annotated", "0.25"]
        train_min.main([*QUICK, *options])
        out = capsys.readouterr().out
        assert "train: 7 pictures" in out and "heldout: 4 pictures" in out
        train, heldout = halves
        assert (train.annotated, heldout.annotated) == (0.25, 1)
        assert all((train[k][1][0] != 0).sum() == 1 for k in range(14))

    def test_words_outside_their_picture_are_counted(self, capsys):
        data_stub.write_synthtext("st", 40, seed=0, size=64)
        for k in range(20):  # pictures that end where words were
            Image.new("RGB", (40, 40)).save(f"st/1/picture_{k}.jpg")
        train_min.main([*QUICK, "--data", "synthtext:st"])
        assert "times: a word that is mostly outside its picture" in capsys.readouterr().out

    def test_many_pictures_that_cannot_be_read_are_summed_up(self, capsys):
        data_stub.write_synthtext("st", 100, seed=0, size=64)
        for k in range(8):
            data_stub.Path(f"st/1/picture_{k}.jpg").unlink()
        train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "90", "--batch", "30"])
        out = capsys.readouterr().out
        assert (
            "skipped as well: 3 other pictures" in out and " skipped=9 " in out
        )  # one of them twice

    def test_more_than_a_share_of_broken_pictures_is_an_error(self):
        data_stub.write_synthtext("st", 40, seed=0, size=64)
        for k in range(8):
            data_stub.Path(f"st/1/picture_{k}.jpg").unlink()
        message = (
            r"error: synthtext:st: \d+ pictures cannot be read, \d+ wanted, at most 10% may; .*st"
        )
        with pytest.raises(SystemExit, match=message):
            train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "72"])

    def test_many_broken_ones_in_a_row_are_told_as_that(self):
        data_stub.write_synthtext("st", 400, seed=0, size=64)
        half = data_stub.Pretraining(data_stub.SynthText("st"), vlpt.Alphabet(), 64, 0)
        for k in range(300, 300 + train_min.TRIES):  # tried 8 + 7 + 6 + 5 times, of 304: no tenth
            data_stub.Path("st", half.source.name(half.index(k))).unlink()
        told = rf"synthtext:st: {train_min.TRIES} pictures in a row cannot be read; .*\.jpg"
        with pytest.raises(SystemExit, match=told):
            train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "320", "--batch", "4"])

    def test_more_processes_than_gpus_is_one_line(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(SystemExit, match="--nproc-per-node: got more than the 1 GPUs"):
            train_min.main([*QUICK, "--device", "cuda"])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_of_the_data_is_not_taken_for_a_worker_s_death(self, workers):
        class Gone:
            def __getitem__(self, k):
                raise FileNotFoundError(2, "No such file or directory", "index.npy")

        with pytest.raises(OSError, match=r"No such file or directory: 'index.npy'$") as stop:
            list(train_min.make_loader(Gone(), [range(2)], workers))
        assert "\n" not in str(stop.value)

    def test_trains_on_synthtext_with_all_characters_at_another_size(self, capsys):
        data_stub.write_synthtext("st", 40, seed=0, size=128)
        train_min.main([*QUICK, "--data", "synthtext:st", "--image-size", "96"])
        out = capsys.readouterr().out
        assert "heldout: 4 pictures of synthtext:st" in out and f"{math.log(97):.3f}" in out

    def test_pictures_that_cannot_be_read_are_counted_and_named(self, capsys):
        data_stub.write_synthtext("st", 30, seed=0, size=64)
        (data_stub.Path("st/1/picture_3.jpg")).write_bytes(b"not a picture")
        (data_stub.Path("st/1/picture_9.jpg")).unlink()  # a held-out one
        train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "54"])  # two epochs
        out = capsys.readouterr().out
        assert "picture_3.jpg: not a readable picture" in out
        result = dict(p.split("=") for p in out.splitlines()[-1].removeprefix("RESULT ").split())
        assert int(result["skipped"]) in (1, 2) and result["unreadable"] == "1"

    @pytest.mark.parametrize(
        ("options", "message"),
        [(["--data", "imagenet"], "data: got 'imagenet', wanted synth, synthtext:PATH"),
         (["--data", "icdar2015:nowhere"], "nowhere.*not found; wanted"),
         (["--data", "jsonl:nowhere"], "nowhere: not found"),
         (["--image-size", "100"], "image_size: got 100, wanted a multiple of 32"),
         (["--image-size", "-64"], "image_size: got -64"),
         (["--init", "none.pt"], "No such file or directory: 'none.pt'"),
         (["--init", train_min.__file__], "train_min.py: not a readable checkpoint"),
         (["--init", "torchvision"], "torchvision: got --backbone clip_resnet, .*wanted resnet18"),
         (["--alphabet", "0123"], "0123: not found; wanted.*ascii, data, or a UTF-8 file"),
         (["--subset", "33"], "subset: got 33, wanted 1 to 32"),
         (["--annotated", "0"], "annotated: got 0.0, wanted above 0")],
    )  # fmt: skip
    def test_a_mistake_is_one_clear_error_and_writes_nothing(self, options, message):
        with pytest.raises(SystemExit, match=rf"(?s)train_min.py: error: .*{message}"):
            train_min.main([*QUICK, *options])
        assert not self.out.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [(["--batch", "1"], "--batch: got '1', wanted a whole number of at least 2"),
         (["--samples", "4"], "--samples: got 4, wanted at least one batch of 8"),
         (["--lr", "0"], "--lr: got '0', wanted a number above 0"),
         (["--init", ""], "--init: got '', wanted a path"),
         (["--lr", "fast"], "--lr: got 'fast', wanted a number above 0"),
         (["--preset", "huge"], "invalid choice: 'huge'"), (["--bacth", "8"], "--bacth"),
         (["--eval", "1"], "--eval: got '1', wanted a whole number of at least 2"),
         (["--seed", "-1"], "--seed: got '-1', wanted a whole number of at least 0"),
         (["--seed", str(2**63)], "and below 9223372036854775808"),
         (["--name", ""], "--name: got '', wanted the name of a folder in runs/"),
         (["--name", "../x"], "--name: got '../x'"), (["--name", "/tmp"], "--name: got '/tmp'"),
         (["--backbone", "vgg"], "invalid choice: 'vgg'"),
         (["--device", "tpu"], "invalid choice: 'tpu'")],
    )  # fmt: skip
    def test_a_wrong_option_is_named(self, options, message, capsys):
        with pytest.raises(SystemExit) as stop:
            train_min.main([*QUICK, *options])
        assert stop.value.code == 2 and message in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_cuda_without_a_gpu_is_named(self, capsys):
        with pytest.raises(SystemExit):
            train_min.main([*QUICK, "--device", "cuda"])
        assert "--device: got cuda, but torch finds no GPU" in capsys.readouterr().err

    def test_help_gives_every_option_a_line_with_its_default(self, capsys):
        with pytest.raises(SystemExit):
            train_min.main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        for shown in (
            "pictures a step, in all processes together (default: 64)",
            "(default: synth)",
            "--warmup",
        ):
            assert shown in text
