"""Tests of train_min.py: its parts on cases with known answers, then whole runs in a folder."""

import copy
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data_stub
import readers
import train_min
import vlpt
from experiments.fake_synthtext import write_synthtext
from tests.conftest import QUICK
from training import data, init, log, report, runs
from training.dataset import Batch, Pretraining
from training.gradcache import cached_backward
from training.log import Log
from training.retrieval import unmasked_words

AGAIN = [*QUICK, "--overwrite"]
ONE_STEP = [*QUICK, "--samples", "8"]


def steps_of(folder):
    """The steps in a run's log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "step"]


class Seer(torch.nn.Module):
    """A stand-in for `vlpt.VLPT` that reads perfectly: pixel (0, 0) holds the character."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.vocabulary = vocabulary

    def encode_image(self, images):
        unit = 1 / 255 / vlpt.PIXEL_STD[0]
        seen = ((images[:, 0, 0, 0] + vlpt.PIXEL_MEAN[0] / vlpt.PIXEL_STD[0]) / unit).round().long()
        image = torch.nn.functional.one_hot(seen, self.vocabulary).float()
        return image, image[:, None], (1, 1)

    def encode_text(self, ids):
        char_features = torch.nn.functional.one_hot(ids, self.vocabulary).float()
        return char_features, char_features[:, 0, 0]

    def decode(self, char_features, image, image_tokens, grid):
        assert torch.equal(image, image_tokens[:, 0])  # both are of the same picture
        return image[:, None, None].expand(-1, *char_features.shape[1:3], -1)


def seer_batch(characters: list[int]) -> Batch:
    """Words of twice the same character: whichever is masked, the other one reveals it."""
    ids = torch.zeros(len(characters), 25, 3, dtype=torch.long)
    images = torch.zeros(len(characters), 3, 4, 4, dtype=torch.uint8)
    for b, character in enumerate(characters):
        ids[b, :2, 0] = character
        images[b, 0] = character
    return Batch(images, ids, [])


class TestParts:
    def test_learning_rate_warms_up_and_falls_to_zero(self):
        rates = [train_min.lr_at(step, 1000, 100) for step in range(1000)]
        assert rates[0] == pytest.approx(1 / 101) and max(rates) <= 1
        assert np.argmax(rates) == 100
        assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
        for step in (100, 600, 999):  # the cosine runs over all steps, the warm-up included (D10)
            assert rates[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 1000)))
        assert train_min.lr_at(500, 1000, 0) == pytest.approx(0.5)

    def test_only_matrices_decay(self):
        model = vlpt.VLPT(vlpt.TINY)
        decayed, kept = train_min.make_optimizer(model, 1e-3, 0.1).param_groups
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
        names = {id(p): name for name, p in model.named_parameters()}
        assert {names[id(p)] for p in kept["params"]} == {
            n
            for n in names.values()
            if n.endswith("bias")
            or "ln_" in n
            or ".bn" in n
            or "downsample.1." in n
            or n == "logit_scale"
        }
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

    def test_what_the_other_characters_reveal_is_no_gain(self):
        class Guesser(Seer):
            def encode_text(self, ids):
                revealed = ids.where(ids != vlpt.MASK, 0).amax(1, keepdim=True).expand_as(ids)
                return super().encode_text(revealed)

            def decode(self, char_features, image, image_tokens, grid):
                return char_features

        result = train_min.evaluate(Guesser(13), [seer_batch([3, 4, 5, 6])], seed=0)
        assert (result["acc_right"], result["acc_other"], result["gain"]) == (1, 1, 0)

    def test_retrieval_counts_nearest_neighbours_both_ways(self):
        class Paired(Seer):
            def encode_image(self, images):
                return torch.eye(4), torch.eye(4)[:, None], (1, 1)

            def encode_text(self, ids):
                text = torch.eye(4)[[0, 1, 3, 3]]  # the third text is the fourth picture's twin
                return super().encode_text(ids)[0], text

        result = train_min.evaluate(Paired(13), [seer_batch([3, 4, 5, 6])], seed=0)
        assert result["t2i"] == 0.75
        assert 0.5 <= result["i2t"] <= 0.75  # two texts tie for the fourth picture

    def test_images_with_the_same_words_are_counted_and_bound_the_retrieval(self):
        """Same words in a batch are mismatches to the contrastive loss, whichever is masked."""
        batches = [seer_batch([3, 4, 3, 5]), seer_batch([3, 6])]
        result = train_min.evaluate(Seer(13), batches, seed=0)
        assert result["same_words"] == 2 / 6  # the 3 of the second batch is alone there
        assert result["ceiling"] == 4 / 6  # 3, 4, 5 and 6 among six images

    def test_words_are_compared_unmasked_and_in_any_order(self):
        alphabet = vlpt.Alphabet("abc")
        words = [["ab", "c"], ["c", "ab"], ["ab", "cc"], ["a", "b", "c"]]
        ids = torch.stack([alphabet.encode(each) for each in words])
        masked_ids, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        sets = unmasked_words(masked_ids, targets)
        assert sets == unmasked_words(ids, torch.full_like(ids, vlpt.IGNORE_INDEX))
        assert sets[0] == sets[1] and len(set(sets)) == 3
        assert sets[:2] == unmasked_words(masked_ids[:2, :, :2], targets[:2, :, :2])  # trimmed

    def test_a_batch_too_small_to_compare_is_left_out(self):
        result = train_min.evaluate(Seer(13), [seer_batch([3]), seer_batch([4, 5])], seed=0)
        assert (result["pictures"], result["unreadable"]) == (2, 1)

    def test_a_step_lowers_the_loss_on_its_batch(self):
        rows = take_steps(make_model(), 12)
        assert rows[-1]["char"] < 0.8 * rows[0]["char"]
        assert rows[-1]["contrastive"] < rows[0]["contrastive"]

    def test_the_numbers_of_a_step_are_those_of_the_batch_before_the_update(self):
        model = make_model()
        images, ids, targets = digit_batch()
        output = copy.deepcopy(model)(vlpt.normalize(images), ids)
        (row,) = take_steps(model, 1)
        char = vlpt.char_loss(output.logits, targets).item()
        assert row["char"] == pytest.approx(char, rel=1e-5)
        total = vlpt.total_loss(output, targets).item()
        assert row["contrastive"] == pytest.approx(total - char, rel=1e-4)
        assert row["scale"] == pytest.approx(1 / 0.07)
        is_right = (output.logits.argmax(-1) == targets).sum() / (targets >= 0).sum()
        assert row["acc"] == pytest.approx(is_right.item())

    def test_gradients_are_clipped_to_a_norm_of_one(self):
        """D10; the norm in the log is the one before clipping."""
        model = make_model()
        (row,) = take_steps(model, 1)
        assert row["norm"] > 2
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert torch.cat(gradients).norm().item() == pytest.approx(1, rel=1e-4)

    def test_the_scale_is_capped_in_the_parameter_and_can_return(self):
        model = make_model()
        with torch.no_grad():
            model.logit_scale.fill_(9.0)
        rows = take_steps(model, 4, lr=1e-2)
        assert rows[0]["scale"] > 100  # as it was before the first update
        assert 99.99 < rows[1]["scale"] <= 100
        assert rows[-1]["scale"] < 99

    def test_without_the_contrastive_loss_the_scale_has_no_gradient(self):
        model = make_model(contrastive=False)
        rows = take_steps(model, 2)
        assert [row["contrastive"] for row in rows] == [0, 0]
        assert model.logit_scale.grad is None
        assert rows[1]["scale"] == rows[0]["scale"]

    def test_oclip_rn50_brings_the_published_schedule(self):
        args = train_min.parse_args(["--preset", "oclip_rn50"])
        assert (args.lr, args.warmup) == (1e-4, 10_000)
        assert train_min.parse_args(["--preset", "oclip_rn50", "--warmup", "5"]).warmup == 5
        assert train_min.parse_args([]).warmup == 150


def make_model(**changes):
    torch.manual_seed(0)
    return vlpt.VLPT(dataclasses.replace(vlpt.TINY, **changes))


def digit_batch(count=8):
    torch.manual_seed(1)
    words = [[str(k) * 3] for k in range(count)]
    ids = torch.stack([vlpt.Alphabet("0123456789").encode(each) for each in words])
    images = torch.randint(0, 255, (count, 3, 64, 64), dtype=torch.uint8)
    return images, *vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))


def take_steps(model, count, lr=1e-3):
    optimizer = train_min.make_optimizer(model, lr, 0.0)
    masked_only = vlpt.MaskedOnly(model)
    rows = [train_min.train_step(masked_only, optimizer, *digit_batch()) for _ in range(count)]
    return [dict(zip(log.TERMS, row.tolist(), strict=True)) for row in rows]


class TestAccumulate:
    @pytest.mark.parametrize("contrastive", [True, False])
    @pytest.mark.parametrize("pieces", [2, 3, 5])
    def test_the_gradient_in_pieces_is_the_whole_batch_s(self, pieces, contrastive):
        """With the same statistics, here the running ones; what plain accumulation does not do."""
        model = make_model(contrastive=contrastive).eval().double()
        masked_only = vlpt.MaskedOnly(model)
        words = [["12"], [], ["345", "6"], ["7"], ["89", "0"]]
        ids = torch.stack([vlpt.Alphabet("0123456789").encode(w) for w in words])
        batch = torch.randn(5, 3, 64, 64).double(), *vlpt.mask_one_char(ids)

        def forward(model, *piece):
            return model(*piece)

        expected = vlpt.total_loss(*masked_only(*batch), contrastive)
        expected.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        loss, output, targets = cached_backward(forward, masked_only, *batch, pieces, contrastive)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
        assert output.logits.shape[0] == targets.shape[0] == 5
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-9, atol=1e-12)

    def test_running_statistics_move_once_a_piece(self):
        model = make_model()
        cached_backward(train_min.forward, vlpt.MaskedOnly(model), *digit_batch(4), 2)
        assert model.backbone.bn1.num_batches_tracked == 2  # and not 4
        expected = vlpt.MaskedOnly(make_model())
        with torch.no_grad():
            for piece in zip(*(x.chunk(2) for x in digit_batch(4)), strict=True):
                train_min.forward(expected, *piece)
        for buffer, value in zip(model.buffers(), expected.buffers(), strict=True):
            assert torch.equal(buffer, value)


class TestData:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_words_are_trimmed_on_a_cpu_only_and_the_same_characters_masked(self, device):
        ids = torch.stack([vlpt.Alphabet().encode(["abc", "de"]), vlpt.Alphabet().encode(["f"])])
        batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ids, [])
        images, masked, targets = data.prepare(batch, 5, torch.device(device))
        assert images.device.type == masked.device.type == device
        if device == "meta":
            assert masked.shape == targets.shape == (2, 25, 3)
            return
        whole, whole_targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(5))
        assert masked.shape == targets.shape == (2, 3, 2)
        assert masked.equal(whole[:, :3, :2]) and targets.equal(whole_targets[:, :3, :2])

    def test_workers_are_one_on_a_cpu_and_the_cores_but_two_with_a_gpu(self, monkeypatch):
        cuda = torch.device("cuda", 0)
        for cores, workers in ((1, 1), (2, 1), (8, 6), (64, 16)):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
            assert data.default_workers(cuda) == workers
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # processes that share the cores
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(18), raising=False)
        assert data.default_workers(cuda) == 4
        assert data.default_workers(torch.device("cpu")) == 1
        monkeypatch.delenv("LOCAL_WORLD_SIZE")  # as with other launchers than torchrun
        monkeypatch.setattr(data, "world_size", lambda: 2)
        assert data.default_workers(cuda) == 8

    def test_a_reading_that_cannot_be_written_ends_the_run(self, tmp_path, monkeypatch):
        source = data_stub.Rendered(32, 4, 0, "heldout", data_stub.DIGITS)
        heldout = Pretraining(source, vlpt.Alphabet("0123456789"), 32, 0)
        written = Log(heldout, 4, (0.0, 0.0), 0.0, tmp_path, False, 0, {})
        monkeypatch.setattr("training.gallery.watch", lambda *_: [])
        monkeypatch.setattr(Path, "open", lambda *_, **__: open("/dev/full", "a"))
        with pytest.raises(OSError, match=r"log\.jsonl: cannot be written \(No space left"):
            written.log_reading(8, None, heldout)

    def test_too_little_shared_memory_means_fewer_workers_and_a_warning(self, monkeypatch, capsys):
        usage = shutil.disk_usage("/")._replace(free=64 * 2**20)  # what a container has
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert data.fitting_workers(4, 64, 64, "/") == 4
        assert not capsys.readouterr().out
        assert data.fitting_workers(4, 16, 512, "/") == 1
        out = capsys.readouterr().out
        assert "/ has 64 MiB free for a process, and 4 workers need 144 MiB; going on with 1" in out
        assert data.fitting_workers(4, 64, 512, "/") == 0
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # processes that share it
        assert data.fitting_workers(4, 16, 512, "/") == 0
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
        assert data.fitting_workers(4, 64, 512, "/nowhere") == 4

    def test_held_out_batches_are_the_same_whoever_loads_them_and_leave_shared_memory(self):
        source = data_stub.Rendered(32, 70, 0, "heldout", data_stub.DIGITS)
        heldout = Pretraining(source, vlpt.Alphabet("0123456789"), 32, 0)
        alone, loaded = (data.evaluation_batches(heldout, 70, 8, workers) for workers in (0, 1))
        assert [len(each.images) for each in alone] == [9] * 6 + [8] * 2
        for one, other in zip(alone, loaded, strict=True):
            assert one.images.equal(other.images) and one.ids.equal(other.ids)
            assert not other.images.is_shared() and not other.ids.is_shared()

    def test_held_out_batches_get_the_workers_that_shared_memory_holds(self, monkeypatch):
        usage = shutil.disk_usage("/")._replace(free=2**20)  # for three batches of 64, 32 x 32
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        used = []

        def load(_data, _keys, workers):
            used.append(workers)
            return [seer_batch([3, 4])]

        monkeypatch.setattr(data, "make_loader", load)
        source = data_stub.Rendered(32, 128, 0, "heldout", data_stub.DIGITS)
        heldout = Pretraining(source, vlpt.Alphabet("0123456789"), 32, 0)
        for batch in (4, 64):
            data.evaluation_batches(heldout, 128, batch, 4)
        assert used == [4, 1]

    def test_the_entropy_of_the_characters_is_that_of_the_words(self, tmp_path):
        for k in range(11):
            Image.new("RGB", (64, 64)).save(tmp_path / f"{k}.png")
        lines = [{"image": f"{k}.png", "words": ["aab", "!"]} for k in range(11)]
        (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
        source = readers.JsonLines(tmp_path / "d.jsonl")
        words = Pretraining(source, vlpt.Alphabet("abc"), 64, 0)
        entropy = -2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)
        assert data.character_entropy(words) == pytest.approx(entropy)

    def test_the_entropy_of_rendered_digits_is_that_of_ten_equal_ones(self):
        source = data_stub.Rendered(64, 10, scene=data_stub.DIGITS)
        digits = Pretraining(source, vlpt.Alphabet("0123456789"), 64, 0)
        assert data.character_entropy(digits) == pytest.approx(math.log(10), abs=2e-3)


class TestRuns:
    @pytest.fixture(autouse=True)
    def in_a_folder(self, quick_run, no_figures, tmp_path, monkeypatch):
        self.quick = quick_run.folder  # a run that has ended, with its figures
        monkeypatch.chdir(tmp_path)
        self.out = tmp_path / "runs" / "t"

    def test_leaves_everything_it_promises(self, quick_run):
        lines = quick_run.output.splitlines()
        chance = next(line for line in lines if "chance" in line).split()
        assert (chance[1], chance[2]) == (f"{math.log(10):.3f}", f"{2 * math.log(8):.3f}")
        entropy = next(line for line in lines if "entropy" in line).split()
        assert float(entropy[1]) == pytest.approx(math.log(10), abs=2e-3)
        assert {path.name for path in self.quick.iterdir()} == set(runs.FILES)
        for picture in ("loss.png", "attention.png"):
            with Image.open(self.quick / picture) as image:
                assert image.width > 300 and np.asarray(image.convert("L")).std() > 10
        result = dict(pair.split("=") for pair in lines[-1].removeprefix("RESULT ").split())
        metrics = json.loads((self.quick / "metrics.json").read_text())
        assert metrics["result"]["samples"] == int(result["samples"]) == 32
        assert result["acc_right"] == f"{metrics['evaluations'][-1]['acc_right']:.3f}"
        assert [row["samples"] for row in steps_of(self.quick)] == [8, 16, 24, 32]
        assert 0 < metrics["result"]["wait"] < 1
        head = next(line for line in lines if line.endswith("  wait"))
        rows = [line for line in lines if line.count("|") == 1 and line != head]
        assert len(rows) == 4 and {len(row) for row in rows} == {len(head)}

    @pytest.mark.usefixtures("no_figures")
    def test_held_out_pictures_are_read_once_for_all_evaluations(self, monkeypatch):
        counts = Counter()
        read = data_stub.Rendered.read

        def counted(source, index, min_side=None):
            counts[source.split, index] += 1
            return read(source, index, min_side)

        monkeypatch.setattr(data_stub.Rendered, "read", counted)
        monkeypatch.setattr(Log, "log_reading", lambda *_: None)  # looks at a few of them again
        train_min.main(QUICK)
        assert [counts["heldout", index] for index in range(16)] == [1] * 16

    def test_a_run_shorter_than_its_warm_up_gives_a_warning(self, quick_run):
        message = "the run ends after 4 steps, before its warm-up of 150 steps is over"
        assert f"warning: {message}" in quick_run.output

    @pytest.mark.parametrize("fault", ["figure", "import"])
    def test_a_figure_that_fails_is_a_warning_after_the_product(self, fault, monkeypatch, capsys):
        if fault == "import":  # such as a matplotlib that cannot read the user's settings
            monkeypatch.setitem(sys.modules, "training.report", None)
            monkeypatch.delattr("training.report")
        else:

            def fail(out, *_):
                assert (out / "backbone.safetensors").exists() and (out / "metrics.json").exists()
                raise RuntimeError("Failed to process string with tex because latex")

            monkeypatch.setattr(report, "draw_all", fail)
        train_min.main(ONE_STEP)
        out = capsys.readouterr().out
        assert "warning: could not draw the report: " in out
        assert out.splitlines()[-1].startswith("RESULT ")

    def test_waiting_is_a_share_of_the_time_of_all_steps_before_and_after_a_resumption(
        self, make_log
    ):
        log = make_log()
        assert log.wait_share() == 0.0
        log.record_time(3.0, 4.0)
        log.record_time(1.0, 4.0)
        assert log.wait_share() == 0.5
        log = make_log(10, json.loads(json.dumps(log.state())))
        assert log.wait_share() == 0.5
        log.record_time(0.0, 8.0)
        assert log.wait_share() == 0.25

    def test_images_a_second_are_those_of_the_steps_since_the_last_evaluation(self, make_log):
        log = make_log()
        log.start -= 1000  # evaluations, say
        log.record_time(0.5, 1.0)
        log.record_time(0.5, 3.0)
        result = dict.fromkeys(("acc_right", "acc_other", "i2t", "t2i"), 0.0)
        assert log.evaluation(80, result).split()[-2:] == ["20", "0.25"]
        log.record_time(0.0, 2.0)
        assert log.evaluation(140, result).split()[-2:] == ["30", "0.00"]

    def test_images_a_second_of_a_resumed_run_are_its_own(self, make_log):
        log = make_log(1000 // 8)
        log.record_time(1.0, 4.0)
        result = dict.fromkeys(("acc_right", "acc_other", "i2t", "t2i"), 0.0)
        assert log.evaluation(1040, result).split()[-2:] == ["10", "0.25"]

    def test_a_full_gpu_is_one_line(self, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(train_min, "train_step", full)
        with pytest.raises(
            SystemExit, match="memory of the GPU is full; lower --batch, or add --ac"
        ):
            train_min.main(QUICK)

    @pytest.mark.parametrize("workers", ["0", "1"])
    @pytest.mark.parametrize("kind", [MemoryError, np.zeros])
    def test_a_full_memory_is_one_line(self, kind, workers, monkeypatch):
        def full(*_):
            raise kind() if kind is MemoryError else AssertionError(kind(10**14))

        monkeypatch.setattr(data_stub.Rendered, "read", full)
        with pytest.raises(SystemExit) as stop:
            train_min.main([*QUICK, "--workers", workers])
        message = str(stop.value)
        assert message.startswith("train_min.py: error: the memory is full")
        assert message.endswith("; lower --batch, or add --accumulate K or --recompute")
        assert "\n" not in message and (kind is MemoryError or "Unable to allocate" in message)

    def test_the_backbone_is_the_checkpoint_s_and_nothing_else(self):
        shutil.copytree(self.quick, self.out)
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

    def test_the_product_says_how_it_was_made(self):
        with safetensors.safe_open(self.quick / "backbone.safetensors", "pt") as file:
            metadata = file.metadata()
        assert (metadata["training_data"], metadata["steps"]) == ("synth", "4")
        assert metadata["alphabet_size"] == "10"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        path = Path("runs") / name / "checkpoint.pt"
        return torch.load(path, weights_only=True)["state_dict"]

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("backbone.safetensors", "the backbone only, because the file has no pool"),
            ("mmocr.pt", "the backbone only, because the file has no pool"),
            ("checkpoint.pt", "the whole model"),
            ("letters.pt", "the backbone and the pool"),
            ("wide.pt", "the backbone only, because its pool has other"),
        ],
    )
    def test_init_starts_from_what_a_run_left(self, file, message, capsys):
        shutil.copytree(self.quick, self.out)
        first = self.weights("t")
        model = vlpt.VLPT(vlpt.TINY)
        model.load_state_dict(first)
        vlpt.export_backbone(model, self.out / "mmocr.pt", "mmocr")
        wide = {
            k: v[:, :1] if k.startswith("pool.") and v.ndim > 1 else v for k, v in first.items()
        }
        torch.save({"state_dict": wide}, self.out / "wide.pt")
        other = dataclasses.replace(vlpt.TINY, alphabet="abcdefghij")
        checkpoint = {"state_dict": first, "config": dataclasses.asdict(other)}
        torch.save(checkpoint, self.out / "letters.pt")
        capsys.readouterr()
        still = [*ONE_STEP, "--lr", "1e-12", "--weight-decay", "0", "--name", "u"]
        train_min.main([*still, "--init", f"runs/t/{file}"])
        assert f"started from runs/t/{file}: {message}" in capsys.readouterr().out
        second = self.weights("u")
        torch.manual_seed(0)
        fresh = vlpt.VLPT(vlpt.TINY).state_dict()  # what --seed 0 draws with and without --init
        for key, value in second.items():
            if "running" in key or "batches" in key:
                continue
            loaded = key.startswith("backbone.") or (
                message.endswith("and the pool") and "pool." in key
            )
            loaded = loaded or message == "the whole model"
            torch.testing.assert_close(value, (first if loaded else fresh)[key], rtol=0, atol=1e-9)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"head.bias": torch.zeros(3)}, "expected weights that fit the config in the file"),
            (None, "expected a whole model, got no state_dict and config"),
        ],
    )
    def test_init_from_a_model_whose_tensors_are_not_those_of_its_config_is_one_line(
        self, state, message
    ):
        checkpoint = {"state_dict": state, "config": dataclasses.asdict(vlpt.TINY)}
        torch.save({k: v for k, v in checkpoint.items() if v is not None}, "model.pt")
        with pytest.raises(SystemExit, match=f"train_min.py: error: model.pt: {message}"):
            train_min.main([*QUICK, "--init", "model.pt"])
        assert not self.out.exists()

    def test_init_interpolates_the_positions_of_a_whole_model(self, tmp_path):
        torch.manual_seed(1)
        first = vlpt.VLPT(vlpt.TINY)
        checkpoint = {"state_dict": first.state_dict(), "config": dataclasses.asdict(vlpt.TINY)}
        torch.save(checkpoint, tmp_path / "model.pt")
        larger = vlpt.VLPT(dataclasses.replace(vlpt.TINY, image_size=96))
        assert init.load_init(larger, str(tmp_path / "model.pt")) == "the whole model"
        images = torch.rand(2, 3, 96, 96)
        ids = torch.stack([vlpt.Alphabet(vlpt.TINY.alphabet).encode(["12"])] * 2)
        with torch.no_grad():  # positions are interpolated at other image sizes anyway
            expected, got = first.eval()(images, ids), larger.eval()(images, ids)
        torch.testing.assert_close(got.image, expected.image)
        real = ids != vlpt.PAD
        torch.testing.assert_close(got.logits[real], expected.logits[real])

    def test_init_from_torchvision_s_own_weights(self, monkeypatch, capsys):
        ours, get_model = {}, torchvision.models.get_model

        def with_weights(name, weights):
            model = get_model(name, weights=None)
            if weights == "DEFAULT":
                ours.update(model.state_dict())
            return model

        monkeypatch.setattr(torchvision.models, "get_model", with_weights)
        options = ["--backbone", "resnet18", "--init", "torchvision", "--lr", "1e-12"]
        train_min.main([*ONE_STEP, *options])
        assert "started from torchvision: the backbone only" in capsys.readouterr().out
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
            SystemExit, match=r"error: --init torchvision: expected to download .*not known"
        ):
            train_min.main([*QUICK, "--backbone", "resnet18", "--init", "torchvision"])
        assert not self.out.exists()

    def test_init_without_its_package_is_one_line(self, monkeypatch):
        Path("b.safetensors").touch()
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(SystemExit, match=r"error: .*import of safetensors\.torch"):
            train_min.main([*QUICK, "--init", "b.safetensors"])
        assert not self.out.exists()

    def test_workers_and_repetition_change_nothing(self):
        train_min.main([*QUICK, "--workers", "2"])
        assert steps_of(self.out) == steps_of(self.quick)

    @pytest.mark.parametrize("options", [["--recompute"], ["--accumulate", "4"]])
    def test_less_memory_gives_a_run_of_the_same_kind(self, options):
        shutil.copytree(self.quick, self.out)
        plain = steps_of(self.out)
        train_min.main([*AGAIN, *options])
        spared = steps_of(self.out)
        assert [row["samples"] for row in spared] == [row["samples"] for row in plain]
        keys = ("char", "contrastive", "norm")
        same = all(spared[0][key] == pytest.approx(plain[0][key], rel=1e-3) for key in keys)
        assert same == (options == ["--recompute"])  # pieces have statistics of their own
        model = vlpt.VLPT(vlpt.TINY)
        held = torch.load(self.out / "checkpoint.pt", weights_only=True)
        model.load_state_dict(held["state_dict"])

    def test_another_seed_changes_the_run(self, seed_1_run):
        assert steps_of(seed_1_run.folder) != steps_of(self.quick)

    def test_tensorboard_when_asked(self):
        train_min.main([*ONE_STEP, "--tensorboard"])
        assert list((self.out / "tensorboard").glob("events.out.tfevents*"))
        held = EventAccumulator(str(self.out / "tensorboard")).Reload().Tags()
        assert "attention" in held["images"] and {"train/char", "heldout/gain"} <= {
            *held["scalars"]
        }

    def test_overwrite_leaves_nothing_of_another_run_in_tensorboard(self):
        earlier = self.out / "tensorboard" / "events.out.tfevents.1"
        earlier.parent.mkdir(parents=True)
        earlier.touch()
        train_min.main([*ONE_STEP, "--overwrite"])
        assert not earlier.parent.exists()

    def test_two_runs_are_compared(self, seed_1_run, capsys):
        shutil.copytree(self.quick, self.out)
        shutil.copytree(seed_1_run.folder, self.out.with_name("u"))
        train_min.main(["compare", "runs/t", "runs/u"])
        out = capsys.readouterr().out
        assert "--seed" in out and "gain" in out and "--batch" not in out
        with Image.open("runs/compare.png") as image:
            assert image.width > 300
        with pytest.raises(SystemExit, match=r"train_min.py: error: .*nothing"):
            train_min.main(["compare", "runs/t", "runs/nothing"])

    def test_tensorboard_that_is_not_installed_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(
            SystemExit, match="--tensorboard: expected the package tensorboard, got none"
        ):
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
        Path("d.jsonl").write_text("\n".join(lines), encoding="utf-8")
        train_min.main([*ONE_STEP, "--data", "jsonl:d.jsonl", "--alphabet", "data"])
        checkpoint = torch.load(self.out / "checkpoint.pt", weights_only=True)
        chars = checkpoint["config"]["alphabet"]
        assert set(chars) == set("".join(words)) and len(chars) == 18
        assert f"{math.log(len(chars)):.3f}" in capsys.readouterr().out
        vlpt.VLPT(vlpt.Config(**checkpoint["config"])).load_state_dict(checkpoint["state_dict"])
        source, alphabet = readers.JsonLines("d.jsonl"), vlpt.Alphabet(chars)
        pretraining = Pretraining(source, alphabet, 64, seed=0)
        ids = torch.stack([pretraining[k][1] for k in range(36)])
        assert {w for k in range(36) for w in alphabet.decode(ids[k])} == set(words)
        assert (ids != vlpt.UNK).all() and not pretraining.notes
        _, targets = vlpt.mask_one_char(ids, torch.Generator().manual_seed(0))
        assert ((targets > vlpt.UNK).sum((1, 2)) == 3).all()

    def test_characters_of_a_file_and_unknown_ones(self, capsys):
        Path("chars.txt").write_text("e\nt\na", encoding="utf-8")
        write_synthtext("st", 40, seed=0, size=64)
        train_min.main([*ONE_STEP, "--data", "synthtext:st", "--alphabet", "chars.txt"])
        out = capsys.readouterr().out
        assert f"{math.log(3):.3f}" in out and "outside the alphabet (kept)" in out
        checkpoint = torch.load(self.out / "checkpoint.pt", weights_only=True)
        assert checkpoint["config"]["alphabet"] == "eta"

    def test_a_data_set_too_small_to_hold_out_two_pictures_says_how_many_it_needs(self):
        for k in range(19):
            Image.new("RGB", (64, 64), (6 * k, 99, 0)).save(f"{k}.png")
        lines = [{"image": f"{k}.png", "words": ["ab"]} for k in range(19)]
        Path("d.jsonl").write_text("\n".join(map(json.dumps, lines)))
        message = "jsonl:d.jsonl: expected at least 2 .* got 1; .* so it needs 20 or more$"
        with pytest.raises(SystemExit, match=message):
            train_min.main([*QUICK, "--data", "jsonl:d.jsonl"])

    def test_held_out_pictures_that_cannot_be_compared_are_noticed_before_the_first_step(self):
        for k in range(20):
            Image.new("RGB", (64, 64), (6 * k, 99, 0)).save(f"{k}.png")
        lines = [{"image": f"{k}.png", "words": ["ab"]} for k in range(20)]
        Path("d.jsonl").write_text("\n".join(map(json.dumps, lines)))
        first = readers.open_source("jsonl:d.jsonl", "heldout").name(0)
        Path(first).write_bytes(b"broken")
        message = f"two readable ones in a batch, got none; the last: .*{first}: not a readable"
        with pytest.raises(SystemExit, match=message):
            train_min.main([*QUICK, "--data", "jsonl:d.jsonl", "--samples", "800"])
        assert steps_of(self.out) == []

    def test_a_subset_of_rendered_pictures_is_the_same_however_long_the_run(self):
        options = ["--subset", "7", "--batch", "8", "--samples"]
        subsets = []
        for samples in ("16", "64"):
            args = train_min.parse_args([*options, samples])
            subsets.append(data.open_data(args, *train_min.configure(args))[0])
        assert subsets[0].indices.tolist() == subsets[1].indices.tolist() == list(range(7))
        for k in range(14):
            assert torch.equal(subsets[0][k][0], subsets[1][k][0])

    def test_a_subset_and_a_share_of_the_words_are_of_the_training_half(self, capsys, monkeypatch):
        halves = []
        open_data = data.open_data
        monkeypatch.setattr(data, "open_data", lambda *a: halves.extend(open_data(*a)) or halves)
        write_synthtext("st", 40, seed=0, size=64)
        options = ["--data", "synthtext:st", "--subset", "7", "--annotated", "0.25"]
        train_min.main([*ONE_STEP, *options])
        out = capsys.readouterr().out
        assert "train: 7 pictures" in out and "heldout: 4 pictures" in out
        with pytest.raises(SystemExit, match="subset: expected 1 to 36 pictures, got 37"):
            train_min.main([*AGAIN, *options, "--subset", "37"])
        train, heldout = halves[:2]
        assert (train.annotated, heldout.annotated) == (0.25, 1)
        assert all((train[k][1][0] != 0).sum() == 1 for k in range(14))

    def test_words_outside_their_picture_are_counted(self, capsys):
        write_synthtext("st", 40, seed=0, size=64)
        for k in range(20):  # pictures that end where words were
            Image.new("RGB", (40, 40)).save(f"st/1/picture_{k}.jpg")
        train_min.main([*QUICK, "--data", "synthtext:st"])
        assert "times: a word mostly outside of its picture" in capsys.readouterr().out

    def test_many_pictures_that_cannot_be_read_are_summed_up(self, capsys):
        write_synthtext("st", 100, seed=0, size=64)
        for k in range(8):
            Path(f"st/1/picture_{k}.jpg").unlink()
        train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "90", "--batch", "30"])
        out = capsys.readouterr().out
        assert (
            "skipped as well: 3 other pictures" in out and " skipped=9 " in out
        )  # one of them twice

    def test_more_than_a_share_of_broken_pictures_is_an_error(self):
        write_synthtext("st", 40, seed=0, size=64)
        for k in range(8):
            Path(f"st/1/picture_{k}.jpg").unlink()
        message = r"error: st: expected at most 10% .* unreadable, got \d+ of \d+; .*st"
        with pytest.raises(SystemExit, match=message):
            train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "72"])

    def test_too_many_broken_pictures_in_a_row_are_an_error(self):
        write_synthtext("st", 400, seed=0, size=64)
        half = Pretraining(readers.SynthText("st"), vlpt.Alphabet(), 64, 0)
        for k in range(300, 300 + data.MAX_ATTEMPTS):  # tried 8 + 7 + 6 + 5 times, of 304: no tenth
            Path("st", half.source.name(half.index(k))).unlink()
        message = (
            rf"a readable picture among {data.MAX_ATTEMPTS} in a row, got none; the last: .*\.jpg"
        )
        with pytest.raises(ValueError, match=message):
            for _ in data.training_batches(half, 4, 1, 80, 0):
                pass

    def test_more_processes_than_gpus_is_one_line(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(SystemExit, match="processes: expected at most 1, one for each GPU"):
            train_min.main([*QUICK, "--device", "cuda"])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_of_the_data_is_not_taken_for_a_worker_s_death(self, workers):
        class Gone:
            def __getitem__(self, k):
                raise FileNotFoundError(2, "No such file or directory", "index.npy")

        with pytest.raises(OSError, match="No such file or directory") as stop:
            list(data.make_loader(Gone(), [range(2)], workers))
        message = runs.describe_error(stop.value)
        assert "No such file or directory" in message and "index.npy" in message
        assert "\n" not in message and "Error" not in message

    def test_trains_on_synthtext_with_all_characters_at_another_size(self, capsys):
        write_synthtext("st", 40, seed=0, size=128)
        train_min.main([*ONE_STEP, "--data", "synthtext:st", "--image-size", "96"])
        out = capsys.readouterr().out
        assert "heldout: 4 pictures of st" in out and f"{math.log(94):.3f}" in out

    def test_a_loader_that_cannot_start_leaves_no_process_behind(self, monkeypatch):
        """Workers ignore signals, so one that is left would keep Python from ending."""
        child = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
        child.start()

        def fail(*_):
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

        monkeypatch.setattr(
            data, "DataLoader", lambda *_, **__: type("L", (), {"__iter__": fail})()
        )
        with pytest.raises(RuntimeError, match="is killed by signal"):
            next(data.make_loader(None, [], workers=1))
        child.join(10)
        assert child.exitcode == -signal.SIGKILL

    def test_pictures_that_cannot_be_read_are_counted_and_named(self, capsys):
        write_synthtext("st", 30, seed=0, size=64)
        (Path("st/1/picture_3.jpg")).write_bytes(b"not a picture")
        (Path("st/1/picture_9.jpg")).unlink()  # a held-out one
        train_min.main([*QUICK, "--data", "synthtext:st", "--samples", "54"])  # two epochs
        out = capsys.readouterr().out
        assert "picture_3.jpg: not a readable picture" in out
        result = dict(p.split("=") for p in out.splitlines()[-1].removeprefix("RESULT ").split())
        assert int(result["skipped"]) in (1, 2) and result["unreadable"] == "1"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--data", "imagenet"],
                "data: expected synth, or one or more of synthtext:PATH.* got 'imagenet'",
            ),
            (["--data", "icdar2015:nowhere"], "nowhere.*expected .*, got no such"),
            (["--data", "jsonl:nowhere"], "nowhere: expected .*, got no such"),
            (["--init", "none.pt"], "none.pt: No such file or directory"),
            (["--init", train_min.__file__], "train_min.py: expected a checkpoint of tensors"),
            (
                ["--init", "torchvision"],
                "expected --backbone to be one of resnet18, .* got clip_resnet",
            ),
            (["--alphabet", "0123"], "0123: expected.*ascii, data, or a UTF-8 file.*, got no such"),
        ],
    )
    def test_a_mistake_is_one_clear_error_and_writes_nothing(self, options, message):
        with pytest.raises(SystemExit, match=rf"(?s)train_min.py: error: .*{message}"):
            train_min.main([*QUICK, *options])
        assert not self.out.exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--batch", "1"], "--batch: expected a whole number of at least 2, got '1'"),
            (["--samples", "4"], "--samples: expected at least one batch of 8, got 4"),
            (["--image-size", "100"], "--image-size: expected a multiple of 32, got 100"),
            (["--image-size", "-64"], "--image-size: expected a whole number of at least 32"),
            (["--annotated", "0"], "--annotated: expected a number above 0, got '0'"),
            (["--annotated", "1.5"], "--annotated: expected at most 1, got 1.5"),
            (["--lr", "0"], "--lr: expected a number above 0, got '0'"),
            (["--lr", "fast"], "--lr: expected a number above 0, got 'fast'"),
            (["--init", ""], "--init: expected a path, got ''"),
            (["--preset", "huge"], "invalid choice: 'huge'"),
            (["--bacth", "8"], "--bacth"),
            (["--eval", "1"], "--eval: expected a whole number of at least 2, got '1'"),
            (["--seed", "-1"], "--seed: expected a whole number of at least 0"),
            (["--seed", str(2**63)], "and below 9223372036854775808, got"),
            (["--name", ""], "--name: expected the name of a folder in runs/, got ''"),
            (["--name", "../x"], "in runs/, got '../x'"),
            (["--name", "/tmp"], "in runs/, got '/tmp'"),
            (["--backbone", "vgg"], "invalid choice: 'vgg'"),
            (["--device", "tpu"], "invalid choice: 'tpu'"),
        ],
    )
    def test_a_wrong_option_is_named(self, options, message, capsys):
        with pytest.raises(SystemExit) as stop:
            train_min.main([*QUICK, *options])
        assert stop.value.code == 2 and message in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_cuda_without_a_gpu_is_named(self, capsys):
        with pytest.raises(SystemExit):
            train_min.main([*QUICK, "--device", "cuda"])
        assert (
            "--device: expected cpu or auto, as torch finds no GPU, got cuda"
            in capsys.readouterr().err
        )

    def test_help_gives_every_option_a_line_with_its_default(self, capsys):
        for action in train_min.make_parser()._actions:
            if action.dest not in ("help", "resume"):
                assert "default: " in action.help, action.dest
        with pytest.raises(SystemExit):
            train_min.main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "images in a step, in all processes together (default: 64)" in text
