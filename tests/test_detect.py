"""Tests of transfer/dataset.py and transfer/detect.py: pictures, crops, training and commands."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import data_stub
import vlpt
from readers.pictures import DetectionSample
from transfer import dataset, detect, heads
from transfer.cache import CachedSource
from transfer.dataset import TrainingCrops, open_dataset
from transfer.psenet import PSENet, draw_kernels
from transfer.pyramid import PADDING_COLOR, DetectorConfig
from transfer.score import f_score, match_detections

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
REAL = Path(os.getenv("VLPT_ICDAR2015", SHARED / "data/icdar2015"))
SQUARE = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])
Z_ORDER = SQUARE[[0, 1, 3, 2]]  # top left, top right, bottom left, bottom right
ARROW = np.float32([[0, 0], [20, 10], [0, 20], [5, 10]])  # not convex
CONFIG = DetectorConfig(width=8, long_side=64)
TINY = [
    *("--samples", "8", "--batch", "4", "--long", "64", "--crop", "64", "--width", "8"),
    *("--workers", "0"),
]


def make_icdar(
    root: Path,
    numbers=(1, 2, 801, 802),
    lines=("10,10,50,10,50,30,10,30,word", "60,10,90,10,90,30,60,30,###"),
) -> Path:
    images = root / "ch4_training_images"
    labels = root / "ch4_training_localization_transcription_gt"
    images.mkdir(parents=True)
    labels.mkdir()
    text = "\ufeff" + "".join(line + "\r\n" for line in lines)
    for n in numbers:
        Image.new("RGB", (96, 64), (n % 256, 80, 90)).save(images / f"img_{n}.jpg")
        (labels / f"gt_img_{n}.txt").write_text(text, encoding="utf-8", newline="")
    return root


class Drawn:
    """Four pictures with three words each, drawn in the plainest way."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.samples = []
        for _ in range(4):
            image = Image.new("RGB", (128, 128), (60, 60, 60))
            draw = ImageDraw.Draw(image)
            polygons = []
            for row in range(3):
                x, y = rng.integers(8, 40), 12 + 38 * row + rng.integers(0, 8)
                width, height = rng.integers(50, 72), rng.integers(16, 24)
                box = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
                draw.polygon(box, fill=(200, 200, 120))
                polygons.append(np.float32(box))
            self.samples.append(DetectionSample(image, polygons, np.zeros(3, bool)))

    def __len__(self):
        return 4

    def __getitem__(self, k):
        return self.samples[k]

    def name(self, k):
        return f"drawn_{k}"


class TestSources:
    def test_unreadable_regions_are_ignored(self, tmp_path):
        data = open_dataset(f"icdar2015:{make_icdar(tmp_path)}", "heldout")
        assert (len(data), data.name(0)) == (2, "img_801")
        sample = data[0]
        assert sample.ignored.tolist() == [False, True] and sample.unusable == 0
        assert [p[0].tolist() for p in sample.polygons] == [[10, 10], [60, 10]]

    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_icdar_itself(self):
        data = open_dataset(f"icdar2015:{REAL}", "heldout")
        assert len(data) == 200 and data.name(0) == "img_801"
        samples = [data[k] for k in range(20)]
        perfect = sum(match_detections(s.polygons, s.ignored, s.polygons) for s in samples)
        assert f_score(perfect)["f"] == 1


class Perfect(torch.nn.Module):
    """A detector whose scores are what is drawn in training for a polygon."""

    def __init__(self, polygon, scale, config):
        super().__init__()
        self.polygon = polygon * scale
        self.config = config
        self.head = heads.HEADS[config.head]
        self.find_words = self.head.find_words
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        shape = images.shape[2:]
        truth, _ = self.head.draw_truth([self.polygon], np.zeros(1, bool), shape, self.config)
        return torch.from_numpy(truth)[None].float() * 20 - 10


class TestPixels:
    """Training multiplies the corners of a word by the scale, and detection undoes it."""

    BOX = np.float32([[400, 200], [800, 200], [800, 320], [400, 320]])

    @pytest.mark.parametrize("scale", [0.25, 0.5])
    @pytest.mark.parametrize("curved", [False, True])
    def test_perfect_kernels_give_a_box_back_exactly(self, scale, curved):
        config = DetectorConfig(long_side=int(1280 * scale), curved=curved)
        for polygon in (self.BOX, self.BOX - self.BOX[0]):  # in the middle, and at the corner
            model = Perfect(polygon, scale, config)
            (found,), _ = heads.detect_text(model, Image.new("RGB", (1280, 720)), config)
            assert sorted(np.round(found, 2).tolist()) == sorted(polygon.tolist())

    @pytest.mark.parametrize("scale", [0.25, 0.5])
    def test_a_box_of_differentiable_binarization_keeps_its_centre(self, scale):
        config = DetectorConfig(long_side=int(1280 * scale), head="db")
        model = Perfect(self.BOX, scale, config)
        (found,), _ = heads.detect_text(model, Image.new("RGB", (1280, 720)), config)
        assert found.mean(0) == pytest.approx(self.BOX.mean(0), abs=0.01)

    def test_a_grown_outline_ends_at_the_edges_of_the_picture(self):
        config = DetectorConfig(long_side=320, head="db")
        model = Perfect(self.BOX.mean(0) + 30 * (self.BOX - self.BOX.mean(0)), 0.25, config)
        (found,), _ = heads.detect_text(model, Image.new("RGB", (1280, 720)), config)
        assert found.min(0).tolist() == [0, 0] and found.max(0).tolist() == [1280, 720]


class TestCorners:
    """Corners that are not listed in order around their word."""

    def test_in_z_order_are_put_in_order(self):
        assert dataset.usable_polygon(Z_ORDER).tolist() == SQUARE.tolist()

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
    def test_of_a_convex_polygon_in_any_order_give_the_polygon(self, order, seed):
        rng = np.random.default_rng(seed)
        angles = np.arange(6) + rng.uniform(0, 0.8, 6)
        polygon = 50 + 30 * np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
        got = shapely.Polygon(dataset.usable_polygon(polygon[list(order)]))
        expected = shapely.Polygon(polygon)
        if shapely.Polygon(polygon[list(order)]).is_valid:  # in order already, or another shape
            assert got.equals(shapely.Polygon(polygon[list(order)]))
        else:
            assert got.equals(expected)

    @pytest.mark.parametrize("polygon", [SQUARE, SQUARE[::-1], ARROW])
    def test_that_do_not_cross_are_left_as_they_are(self, polygon):
        assert dataset.usable_polygon(polygon) is polygon

    @pytest.mark.parametrize(
        "polygon",
        [
            np.float32([[5, 5]] * 4),
            np.float32([[0, 0], [9, 0], [5, 0], [2, 0]]),
            np.float32([[0, 0], [40, 0], [10, 10], [0, 40], [40, 40], [0, 1]]),
        ],
    )
    def test_without_an_area_or_an_order_are_unusable(self, polygon):
        assert dataset.usable_polygon(polygon) is None

    def test_that_cross_train_and_score_like_those_in_order(self, tmp_path):
        lines = ("10,10,50,10,10,30,50,30,word",)
        sample = open_dataset(f"icdar2015:{make_icdar(tmp_path, lines=lines)}", "train")[0]
        kernels, _ = draw_kernels(sample.polygons, sample.ignored, (64, 96), 0.4)
        expected, _ = draw_kernels([SQUARE], [False], (64, 96), 0.4)
        assert np.array_equal(kernels, expected) and kernels[-1].any()
        assert match_detections(sample.polygons, sample.ignored, [SQUARE]).tolist() == [1, 1, 1]

    def test_that_are_unusable_make_the_word_an_ignored_region(self, tmp_path):
        lines = ("10,10,50,10,50,30,10,30,word", "70,20,70,20,70,20,70,20,dot")
        sample = open_dataset(f"icdar2015:{make_icdar(tmp_path, lines=lines)}", "train")[0]
        assert sample.ignored.tolist() == [False, True] and sample.unusable == 1
        assert match_detections(sample.polygons, sample.ignored, [SQUARE]).tolist() == [1, 1, 1]

    def test_the_region_of_an_unusable_word_is_the_hull_of_its_corners(self):
        crossed = np.float32([[0, 0], [40, 0], [10, 10], [0, 40], [40, 40], [0, 1]])
        hull = dataset.outline_of(crossed)
        assert shapely.Polygon(hull).equals(shapely.MultiPoint(crossed).convex_hull)


class TestCrops:
    def source(self, count=3):
        return open_dataset("synth", "train", 96, count)

    def crops(self, count=3, seed=0, subset=None):
        config = DetectorConfig(long_side=96)
        return TrainingCrops(self.source(count), config, 64, seed, subset)

    def test_words_and_pixels_move_together(self):
        image = np.zeros((100, 200, 3), np.uint8)
        image[40:60, 120:160] = 255
        quad = np.float32([[120, 40], [160, 40], [160, 60], [120, 60]])
        sample = DetectionSample(Image.fromarray(image), [quad], np.array([False]))
        for seed in range(20):
            rng = np.random.default_rng(seed)
            crop = dataset.crop_sample(sample, 64, float(rng.uniform(0.4, 1.2)), rng)
            assert crop.image.size == (64, 64)
            kernels, _ = draw_kernels(crop.polygons, crop.ignored, (64, 64), 0.4)
            word = kernels[0] > 0
            pixels = np.asarray(crop.image).mean(-1)
            bright = pixels > pixels.max() / 2 if word.any() else np.zeros((64, 64), bool)
            bright &= pixels != PADDING_COLOR[0]
            assert (bright & word).sum() >= 0.75 * (bright | word).sum()

    def test_follow_from_the_seed_and_have_the_right_types(self):
        data = self.crops(seed=1)
        pixels, kernels, valid = data[5]
        assert pixels.shape == (3, 64, 64) and kernels.shape == (7, 64, 64)
        assert valid.shape == (64, 64) and {x.dtype for x in data[5]} == {torch.uint8}
        again = self.crops(seed=1)[5]
        assert all(torch.equal(a, b) for a, b in zip(data[5], again, strict=True))
        assert not torch.equal(pixels, self.crops(seed=2)[5][0])

    def test_a_smaller_subset_is_part_of_a_larger_one(self):
        small, large = (self.crops(9, subset=n).indices for n in (3, 6))
        assert len(small) == 3 and set(small) < set(large)
        with pytest.raises(ValueError, match="--subset: expected 1 to 9 pictures, got 10"):
            self.crops(9, subset=10)

    @pytest.mark.parametrize("subset", [None, 1])
    def test_a_training_split_without_pictures_is_an_error(self, tmp_path, subset):
        source = open_dataset(f"icdar2015:{make_icdar(tmp_path, (801, 802))}", "train")
        message = "--data: expected pictures to train on, got none in the training split"
        with pytest.raises(ValueError, match=message):
            TrainingCrops(source, CONFIG, 64, 0, subset)


class TestSurvey:
    """What is found out about the training pictures before the first step."""

    def crops(self, root, lines, **options):
        spec = f"icdar2015:{make_icdar(root, lines=lines)}"
        return TrainingCrops(open_dataset(spec, "train"), DetectorConfig(**options), 64, 0)

    def test_counts_words_and_crops(self, tmp_path):
        lines = (
            "10,10,50,10,50,30,10,30,word",
            "70,20,70,20,70,20,70,20,dot",
            "10,50,90,50,90,52,10,52,thin",
        )
        data = self.crops(tmp_path, lines, long_side=96)
        found = dataset.survey(data, 10)
        assert (found.crops, found.words, found.unusable, found.too_thin) == (10, 4, 2, 2)
        unusable, thin = dataset.describe_survey(found, data.config)[:2]
        assert unusable.startswith("warning: 2 of 6 words have corners that enclose no simple area")
        assert thin.startswith(
            "warning: 2 of 4 words are so small at --long 96 that their smallest"
        )

    def test_small_words_are_named_as_the_head_names_them(self):
        found = dataset.Survey(crops=1, without_words=0, words=3, unusable=0, too_thin=2)
        for head, name in (("psenet", "smallest kernel"), ("db", "shrunken copy")):
            (line,) = dataset.describe_survey(found, DetectorConfig(head=head))
            assert f"so small at --long 960 that their {name} is less than a pixel" in line

    def test_a_larger_picture_makes_words_thick_enough(self, tmp_path):
        data = self.crops(tmp_path, ("10,50,90,50,90,52,10,52,thin",), long_side=960)
        assert dataset.survey(data, 4).too_thin == 0

    def test_words_in_their_size_and_order_need_no_warning(self, tmp_path):
        data = self.crops(tmp_path, ("10,10,50,10,50,30,10,30,word",), long_side=96)
        found = dataset.survey(data, 8)
        assert (found.without_words, found.unusable, found.too_thin) == (0, 0, 0)
        assert dataset.describe_survey(found, data.config) == []

    def test_mostly_empty_crops_are_a_warning(self):
        found = dataset.Survey(crops=10, without_words=6, words=3, unusable=0, too_thin=0)
        (line,) = dataset.describe_survey(found, CONFIG)
        assert line.startswith("warning: 6 of the first 10 crops contain no word")
        enough = dataset.Survey(crops=10, without_words=5, words=3, unusable=0, too_thin=0)
        assert dataset.describe_survey(enough, CONFIG) == []

    def test_a_word_in_the_last_of_many_pictures_is_enough(self, tmp_path, monkeypatch):
        root = make_icdar(tmp_path, (*range(1, 9), 801), lines=("10,10,50,10,50,30,10,30,###",))
        data = TrainingCrops(open_dataset(f"icdar2015:{root}", "train"), CONFIG, 64, 0)
        with pytest.raises(ValueError, match="--data: expected words to train on, got 8 pictures"):
            dataset.survey(data, 4)
        order = data_stub.shuffled(8, 0, 0)
        last = data.indices[order[-1]] + 1
        label = root / f"ch4_training_localization_transcription_gt/gt_img_{last}.txt"
        label.write_text("10,10,50,10,50,30,10,30,word\n")
        data = TrainingCrops(open_dataset(f"icdar2015:{root}", "train"), CONFIG, 64, 0)
        assert dataset.survey(data, 4).words == 0


class TestTraining:
    def test_matrices_decay_and_gains_do_not(self):
        model = heads.build_detector(CONFIG)
        groups = detect.make_optimizer(model, 1e-3).param_groups
        decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert decaying == {id(p) for p in model.parameters() if p.ndim > 1}
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))

    @pytest.mark.parametrize(("head", "term"), [("psenet", "text"), ("db", "probability")])
    def test_overfits_four_pictures(self, head, term):
        torch.manual_seed(0)
        config = DetectorConfig(width=32, long_side=128, head=head)
        data = Drawn()
        model = heads.build_detector(config)
        crops = TrainingCrops(data, config, 128, 0)
        rows = detect.train_detector(model, crops, samples=240, batch=4, lr=3e-3)
        found = detect.evaluate_detector(model, data, config)
        assert rows[-1][term] < 0.5 * rows[0][term]
        assert (found["pictures"], found["words"]) == (4, 12) and found["f"] >= 0.95, found

    def test_evaluation_counts_words_with_unusable_corners(self, tmp_path, monkeypatch):
        lines = ("10,10,50,10,10,30,50,30,word", "70,20,70,20,70,20,70,20,dot")
        data = open_dataset(f"icdar2015:{make_icdar(tmp_path, lines=lines)}", "heldout")
        monkeypatch.setattr(detect, "detect_text", lambda *_: ([SQUARE], [0.9]))
        found = detect.evaluate_detector(heads.build_detector(CONFIG), data, CONFIG)
        assert (found["f"], found["words"], found["unusable"]) == (1, 2, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A detector that was hardly trained, by the command."""
    root = tmp_path_factory.mktemp("detect")
    make_icdar(root / "ic")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        detect.main(["train", "--data", "icdar2015:ic", "--name", "d", *TINY])
    return root


class TestCommands:
    def test_train_leaves_a_detector_and_says_how_it_went(self, trained):
        run = trained / "runs/d"
        assert sorted(p.name for p in run.iterdir() if p.is_file())[:2] == [
            "checkpoint.pt",
            "metrics.json",
        ]
        rows = json.loads((run / "metrics.json").read_text())["rows"]
        assert rows[-1]["samples"] == 8 and 0 < rows[-1]["text"] <= 1
        model, config = detect.load_detector(run, "cpu")
        assert not model.training and (config.long_side, config.smallest_kernel) == (64, 0.4)
        assert (config.head, config.min_score) == ("psenet", 0.7)

    def test_eval_writes_the_files_of_the_competition(self, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        quad = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])
        monkeypatch.setattr(
            detect, "detect_text", lambda *_: ([quad, quad + np.float32([60, 30])], [0.9, 0.8])
        )
        (trained / "runs/d/results").mkdir(exist_ok=True)
        (trained / "runs/d/results/res_img_7.txt").write_text("of another set")
        detect.main(["eval", "runs/d", "--data", "icdar2015:ic"])
        results = sorted((trained / "runs/d/results").iterdir())
        assert [p.name for p in results] == ["res_img_801.txt", "res_img_802.txt"]
        text = "10,10,50,10,50,30,10,30\r\n70,40,110,40,110,60,70,60\r\n"
        assert results[0].read_bytes().decode() == text
        score = json.loads((trained / "runs/d/score.json").read_text())
        assert (score["precision"], score["recall"], score["pictures"]) == (0.5, 1, 2)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("RESULT data=icdar2015:ic precision=0.500 recall=1.000 f=0.667")

    def test_predict_writes_an_overlay_and_json(self, trained, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(trained)
        quad = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])
        monkeypatch.setattr(detect, "detect_text", lambda *_: ([quad], [0.91]))
        Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
        detect.main(["predict", "runs/d", str(tmp_path / "photo.png")])
        out = trained / "runs/d/predictions"
        entry = json.loads((out / "photo.json").read_text())
        assert entry["text"] == [{"polygon": quad.tolist(), "score": 0.91}]
        assert (entry["width"], entry["height"]) == (96, 64)
        overlay = np.asarray(Image.open(out / "photo.png"))
        assert overlay.shape == (64, 96, 3)
        assert overlay[10, 30].tolist() == [255, 0, 80] and overlay[20, 30].tolist() == [0, 0, 0]
        assert not list(out.glob("*.part"))
        assert "1 texts; wrote" in capsys.readouterr().out

    def test_the_file_of_a_detector_stands_for_its_folder(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(trained)
        Image.new("RGB", (64, 64)).save(tmp_path / "by_file.png")
        detect.main(["eval", "runs/d/checkpoint.pt", "--data", "icdar2015:ic"])
        assert json.loads(Path("runs/d/score.json").read_text())["pictures"] == 2
        assert Path("runs/d/results/res_img_801.txt").exists()
        detect.main(["predict", "runs/d/checkpoint.pt", str(tmp_path / "by_file.png")])
        assert Path("runs/d/predictions/by_file.json").exists()

    @pytest.mark.parametrize(("options", "expected"), [([], 0.7), (["--score", "0.2"], 0.2)])
    def test_eval_and_predict_take_another_score(
        self, trained, monkeypatch, tmp_path, options, expected
    ):
        monkeypatch.chdir(trained)
        Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
        seen = []
        monkeypatch.setattr(detect, "detect_text", lambda *args: seen.append(args[2]) or ([], []))
        detect.main(["eval", "runs/d", "--data", "icdar2015:ic", *options])
        detect.main(["predict", "runs/d", str(tmp_path / "photo.png"), *options])
        assert [config.min_score for config in seen] == [expected] * 3
        assert json.loads(Path("runs/d/score.json").read_text())["min_score"] == expected

    def test_the_options_of_a_training_are_kept_as_they_are(self, trained):
        options = json.loads((trained / "runs/d/metrics.json").read_text())["args"]
        assert (options["samples"], options["lr"], options["curved"]) == (8, 1e-3, False)
        assert options["init"] is None and options["data"] == "icdar2015:ic"

    def test_predict_takes_the_pictures_of_a_folder(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(trained)
        for name in ("one.jpg", "two.PNG"):
            Image.new("RGB", (64, 64)).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "._one.jpg").write_bytes(b"what a Mac leaves on other disks")
        detect.main(["predict", "runs/d", str(tmp_path)])
        out = trained / "runs/d/predictions"
        assert {"one.json", "one.png", "two.json", "two.png"} <= {p.name for p in out.iterdir()}

    def test_the_same_seed_gives_the_same_detector(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        make_icdar(tmp_path / "ic")
        detect.main(["train", "--data", "icdar2015:ic", "--name", "d", *TINY])
        one, other = (
            vlpt.read_checkpoint(p / "runs/d/checkpoint.pt")["state_dict"]
            for p in (trained, tmp_path)
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


class TestHeads:
    """The head is chosen when a detector is trained, and saved with it."""

    def test_the_commands_take_differentiable_binarization(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        make_icdar(tmp_path / "ic")
        detect.main(["train", "--head", "db", "--data", "icdar2015:ic", "--name", "d", *TINY])
        rows = json.loads(Path("runs/d/metrics.json").read_text())["rows"]
        assert list(rows[-1]) == ["samples", "probability", "binary", "threshold"]
        header = "  samples probability  binary threshold  seconds"
        assert header in capsys.readouterr().out
        model, config = detect.load_detector(Path("runs/d"), "cpu")
        assert isinstance(model, heads.HEADS["db"]) and config.head == "db"
        assert config.min_score == 0.5
        detect.main(["eval", "runs/d", "--data", "icdar2015:ic"])
        assert json.loads(Path("runs/d/score.json").read_text())["pictures"] == 2
        image = "ic/ch4_training_images/img_801.jpg"
        detect.main(["predict", "runs/d", image])
        assert json.loads(Path("runs/d/predictions/img_801.json").read_text())["image"] == image

    def test_a_detector_that_was_saved_without_a_head_is_a_psenet(self, trained, tmp_path):
        checkpoint = vlpt.read_checkpoint(trained / "runs/d/checkpoint.pt")
        del checkpoint["config"]["head"]
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        model, config = detect.load_detector(tmp_path, "cpu")
        assert isinstance(model, PSENet) and config.head == "psenet"

    def test_an_unknown_head_is_another_checkpoint(self, trained, tmp_path):
        checkpoint = vlpt.read_checkpoint(trained / "runs/d/checkpoint.pt")
        checkpoint["config"]["head"] = "east"
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"expected a detector, .* got another checkpoint"):
            detect.load_detector(tmp_path, "cpu")

    @pytest.mark.parametrize(("head", "maps"), [("psenet", 7), ("db", 3)])
    def test_a_crop_has_the_truth_of_its_head(self, head, maps):
        config = DetectorConfig(long_side=128, head=head)
        data = TrainingCrops(Drawn(), config, 64, 0)
        _, truth, valid = data[0]
        assert truth.shape == (maps, 64, 64) and truth[0].any() and valid.all()
        assert dataset.survey(data, 4).words == 12

    def test_starts_from_an_export_with_either_head(self, tmp_path):
        torch.manual_seed(0)
        pretrained = vlpt.VLPT(vlpt.TINY)
        vlpt.export_backbone(pretrained, tmp_path / "b.pt")
        for head in heads.HEADS:
            config = DetectorConfig(width=8, head=head)
            model = heads.build_detector(config, str(tmp_path / "b.pt"))
            for key, value in pretrained.backbone.state_dict().items():
                assert torch.equal(model.backbone.state_dict()[key], value)

    def test_starts_from_a_run_of_which_only_the_checkpoint_before_the_last_is_left(
        self, tmp_path, monkeypatch, capsys
    ):
        """It was killed between two renames, see `training.runs.save_checkpoint`."""
        monkeypatch.chdir(tmp_path)
        Path("run").mkdir()
        vlpt.export_backbone(vlpt.VLPT(vlpt.TINY), "run/checkpoint.pt")
        Path("run/checkpoint.pt").rename("run/checkpoint.previous.pt")
        detect.main(["train", "--init", "run", *TINY])
        assert "parameters from run\n" in capsys.readouterr().out


class TestMistakes:
    """Each is one line that says what is wrong, and leaves nothing half-written."""

    PROGRAM = "python -m transfer.detect: error: "

    def fails(self, capsys, *argv):
        with pytest.raises(SystemExit) as stop:
            detect.main([*map(str, argv)])
        if stop.value.code == 2:
            message = capsys.readouterr().err.splitlines()[-1]
        else:
            message = str(stop.value)
        return message.removeprefix(self.PROGRAM)

    def test_other_checkpoints(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        torch.save({"state_dict": {}}, "other.pt")
        Path("noise.pt").write_bytes(b"noise")
        Image.new("RGB", (32, 32)).save("a.png")
        message = self.fails(capsys, "predict", "other.pt", "a.png")
        assert message == (
            "other.pt: expected a detector, which `python -m transfer.detect train` leaves, "
            "got another checkpoint"
        )
        assert "noise.pt: " in self.fails(capsys, "predict", "noise.pt", "a.png")
        message = self.fails(capsys, "train", "--init", "noise.pt", *TINY)
        assert message.startswith("noise.pt: expected a checkpoint of tensors")
        vlpt.export_backbone(vlpt.build_backbone("resnet18"), "r18.pt")
        for name in ("other.pt", "r18.pt"):
            message = self.fails(capsys, "train", "--init", name, *TINY)
            expected = f"{name}: expected the weights of the backbone tiny of this version, got "
            assert message.startswith(expected + "others (not the weights of clip_resnet: Missing")
            assert message.endswith("; set --backbone to that of the pre-training")
        assert "; Unexpected key(s) in state_dict: " in message  # those of resnet18
        assert not Path("runs").exists()

    def test_missing_runs(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("empty").mkdir()
        nothing = "expected a run's folder with a checkpoint.pt, or a file, got neither"
        assert self.fails(capsys, "eval", "nowhere", "--data", "synth") == f"nowhere: {nothing}"
        assert self.fails(capsys, "train", "--init", "nowhere", *TINY) == f"nowhere: {nothing}"
        assert self.fails(capsys, "predict", "empty", "a.png") == f"empty: {nothing}"

    @pytest.mark.parametrize(
        ("error", "command", "message"),
        [
            (
                torch.OutOfMemoryError("CUDA out of memory"),
                ["train"],
                "full; lower --batch, --crop or --width",
            ),
            (
                torch.OutOfMemoryError("CUDA out of memory"),
                ["eval", "runs/d", "--data", "synth"],
                "full; use --device cpu if it is the GPU's, else a machine with more",
            ),
            (
                torch.OutOfMemoryError("CUDA out of memory"),
                ["predict", "runs/d", "a.png"],
                "full; use --device cpu if it is the GPU's, else a machine with more",
            ),
            (
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
                ["train"],
                "Killed; start it again",
            ),
            (MemoryError(), ["train"], "memory is full; lower --batch, --crop or --width"),
            (PermissionError(13, "Permission denied", "x"), ["train"], "x: Permission denied"),
        ],
    )
    def test_what_goes_wrong_outside_of_the_program_is_one_line(
        self, error, command, message, monkeypatch
    ):
        def fail(_):
            raise error

        for name in ("train", "evaluate", "predict"):
            monkeypatch.setattr(detect, name, fail)
        with pytest.raises(SystemExit) as stop:
            detect.main(command)
        assert str(stop.value).endswith(message) and "\n" not in str(stop.value)

    def test_ctrl_c_ends_with_the_status_that_shells_expect(self, monkeypatch, capsys):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(detect, "train", interrupt)
        with pytest.raises(SystemExit) as stop:
            detect.main(["train"])
        assert stop.value.code == 130
        assert capsys.readouterr().err == "python -m transfer.detect: stopped\n"

    def test_names_that_the_terminal_cannot_show_stop_nothing(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(trained)
        for name in ("出口.png", "出口2.png"):
            Image.new("RGB", (64, 64)).save(tmp_path / name)
        terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        detect.main(["predict", "runs/d", str(tmp_path)])
        terminal.flush()
        assert terminal.buffer.getvalue().count(b"\\u51fa\\u53e3") >= 2
        assert Path("runs/d/predictions/出口2.json").exists()

    def test_the_device_is_a_gpu_if_there_is_one(self, monkeypatch):
        for has_gpu, device in ((True, "cuda"), (False, "cpu")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
            assert detect.parse_args(["train"]).device == device

    def test_empty_folders(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        message = self.fails(capsys, "predict", "runs/d", tmp_path)
        assert message == f"{tmp_path}: expected pictures such as .jpg or .png, got none in it"
        picture = "ic/ch4_training_images/img_801.jpg"
        assert self.fails(capsys, "predict", "runs/d", picture, tmp_path) == message
        message = self.fails(capsys, "eval", "runs/d", "--data", f"icdar2015:{tmp_path}")
        assert "ch4_training_images: expected " in message and "got no such" in message
        for folder in ("Train", "Test"):
            (tmp_path / "Images" / folder).mkdir(parents=True)
            (tmp_path / "txt_format" / folder).mkdir(parents=True)
        message = self.fails(capsys, "eval", "runs/d", "--data", f"totaltext:{tmp_path}")
        assert message.startswith(f"{tmp_path}/Images/Train: expected pictures with labels")

    def test_pictures_that_are_cut_off(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "cut.jpg")
        content = (tmp_path / "cut.jpg").read_bytes()
        (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
        message = self.fails(capsys, "predict", "runs/d", tmp_path / "cut.jpg")
        assert "cut.jpg: not a readable picture (" in message and "\n" not in message
        root = make_icdar(tmp_path / "ic")
        later = root / "ch4_training_images/img_802.jpg"
        message = self.fails(capsys, "predict", "runs/d", tmp_path / "cut.jpg", later)
        assert message.startswith(f"1 of 2 pictures could not be read: {tmp_path}/cut.jpg: ")
        assert Path("runs/d/predictions/img_802.json").exists()
        (tmp_path / "cut.jpg").replace(root / "ch4_training_images/img_2.jpg")
        message = self.fails(capsys, "train", "--data", f"icdar2015:{root}", "--name", "cut", *TINY)
        assert "img_2.jpg: not a readable picture (" in message
        assert not Path("runs/cut").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--crop", "48"], "--crop: expected a multiple of 32, got 48"),
            (
                ["--samples", "4", "--batch", "8"],
                "--samples: expected at least one batch of 8, got 4",
            ),
            (["--smallest", "1.5"], "expected a number above 0 and below 1, got '1.5'"),
            (["--lr", "nan"], "--lr: expected a number above 0, got 'nan'"),
            (["--seed", str(2**63)], "--seed: expected a whole number of at least 0 and below"),
            (["--width", "0"], "--width: expected a whole number of at least 1, got '0'"),
            (["--name", "../x"], "--name: expected the name of a folder in runs/, got '../x'"),
            (["--sample", "9"], "unrecognized arguments: --sample 9"),
            (["--backbone", "vgg"], "invalid choice: 'vgg'"),
            (["--head", "east"], "invalid choice: 'east'"),
            (
                ["--head", "db", "--smallest", "0.7"],
                "--smallest: expected 0.4 with --head db, got 0.7",
            ),
            (["--init", ""], "--init: expected a path, got ''"),
        ],
    )
    def test_numbers_and_names(self, options, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert message in self.fails(capsys, "train", *options)

    def test_another_number_of_pictures(self, capsys):
        message = self.fails(capsys, "eval", "runs/d", "--count", "0")
        assert "--count: expected a whole number of at least 1, got '0'; see --help" in message

    def test_eval_needs_to_know_the_data(self, capsys):
        message = self.fails(capsys, "eval", "runs/d")
        assert "the following arguments are required: --data" in message

    def test_unknown_data(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        message = self.fails(capsys, "train", "--data", "coco:x", *TINY)
        assert "totaltext:PATH" in message and "got 'coco:x'" in message

    @pytest.mark.parametrize("workers", [0, 1])
    def test_what_is_wrong_with_a_source(self, tmp_path, monkeypatch, capsys, workers):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(detect, "survey", lambda *_: dataset.Survey(1, 0, 1, 0, 0))
        entry = '{"image": "a.png", "words": ["a"], "quads": [[[0, 0], [9, 0], [9, 9]]]}\n'
        Path("a.jsonl").write_text(entry * 11)
        options = ["train", "--data", "jsonl:a.jsonl", *TINY, "--workers", workers]
        assert "a.jsonl:1: " in self.fails(capsys, *options)
        lines = [f'{{"image": "{name}.png", "words": ["a"]}}\n' for name in "ab"]
        Path("a.jsonl").write_text("".join(lines))
        message = self.fails(capsys, *options)
        assert message == "a.png: expected a quad for each word, got none"

    def test_a_training_set_in_which_all_text_is_unreadable(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(detect, "train_detector", None)  # the error comes before the first step
        unreadable = make_icdar(tmp_path / "ic", lines=("10,10,50,10,50,30,10,30,###",))
        cases = [unreadable]
        if (SHARED / "cases").is_dir():
            cases.append(SHARED / "cases/icdar2015-all-unreadable")
        for root in cases:
            message = self.fails(capsys, "train", "--data", f"icdar2015:{root}", *TINY)
            assert message.startswith("--data: expected words to train on, got ")
            assert "all text is marked unreadable" in message
        assert not Path("runs").exists()

    def test_mostly_empty_crops_are_a_warning(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        root = make_icdar(tmp_path / "ic", (*range(1, 10), 801), ("1,1,9,1,9,3,1,3,###",))
        labels = root / "ch4_training_localization_transcription_gt"
        (labels / "gt_img_3.txt").write_text("10,10,50,10,50,30,10,30,word\n")
        detect.main(["train", "--data", f"icdar2015:{root}", *TINY])
        assert "of the first 8 crops contain no word" in capsys.readouterr().out

    def test_a_pre_training_and_a_file_are_not_replaced(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("runs/demo").mkdir(parents=True)
        Path("runs/file").touch()
        for name in ("run.json", "checkpoint.pt"):
            Path(f"runs/demo/{name}").write_text("of the pre-training")
        monkeypatch.setattr(detect, "train_detector", None)  # the error comes before it
        message = self.fails(capsys, "train", "--name", "demo", *TINY)
        expected = "--name: expected another name than demo, got a pre-training in runs/demo"
        assert message == expected
        message = self.fails(capsys, "train", "--name", "file/x", *TINY)
        assert message == "--name: expected another name than file/x, got the file runs/file"
        assert Path("runs/demo/checkpoint.pt").read_text() == "of the pre-training"

    def test_names_that_occur_twice(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            Image.new("RGB", (32, 32)).save(tmp_path / folder / "1.png")
        message = self.fails(capsys, "predict", "runs/d", tmp_path / "a/1.png", tmp_path / "b")
        assert message == "IMAGE: expected each name once, got 2 pictures named 1"
        rest = ', "words": ["a"], "quads": [[[1, 1], [9, 1], [9, 9], [1, 9]]]}\n'
        names = [f"{k}.png" for k in range(20)]
        names[9], names[19] = "a/1.png", "b/1.png"  # the two that are held out
        lines = "".join(f'{{"image": "{name}"{rest}' for name in names)
        (tmp_path / "d.jsonl").write_text(lines)
        detect.main(["eval", "runs/d", "--data", "icdar2015:ic"])
        score, results = Path("runs/d/score.json"), Path("runs/d/results")
        before = score.read_text(), sorted(results.iterdir())
        monkeypatch.setattr(detect, "detect_text", None)  # the error comes before it
        message = self.fails(capsys, "eval", "runs/d", "--data", f"jsonl:{tmp_path}/d.jsonl")
        assert message.endswith(
            "res_1.txt: expected one picture of this name, got 2; evaluate their folders one by one"
        )
        assert (score.read_text(), sorted(results.iterdir())) == before  # nothing is lost

    def test_a_new_detector_has_found_nothing_yet(self, trained, monkeypatch):
        monkeypatch.chdir(trained)
        run = Path("runs/again")
        detect.main(["train", "--data", "icdar2015:ic", "--name", "again", *TINY])
        before = {path for path in run.rglob("*") if path.is_file()}
        detect.main(["eval", "runs/again", "--data", "icdar2015:ic"])
        detect.main(["predict", "runs/again", "ic/ch4_training_images"])
        Path("runs/again/predictions/notes.txt").write_text("of the user")
        assert len([path for path in run.rglob("*") if path.is_file()]) > len(before) + 1
        detect.main(["train", "--data", "icdar2015:ic", "--name", "again", *TINY])
        after = {path for path in run.rglob("*") if path.is_file()}
        assert after == {*before, Path("runs/again/predictions/notes.txt")}

    def test_a_folder_that_cannot_be_written_to_is_noticed_before_the_training(
        self, trained, monkeypatch, capsys
    ):
        monkeypatch.chdir(trained)
        monkeypatch.setattr(detect, "train_detector", None)  # the error comes before it
        command = ["train", "--data", "icdar2015:ic", "--name", "shut", *TINY]
        Path("runs/shut").symlink_to("nowhere/at/all")
        expected = "--name: expected a folder that can be written to, got runs/shut: "
        assert self.fails(capsys, *command) == f"{expected}File exists"

        def refuse(dir):
            raise PermissionError(13, "Permission denied", str(dir))

        Path("runs/shut").unlink()
        monkeypatch.setattr(detect.tempfile, "TemporaryFile", refuse)
        assert self.fails(capsys, *command) == f"{expected}Permission denied"

    def test_a_full_disk_leaves_the_old_detector(self, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        before = Path("runs/d/checkpoint.pt").read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        message = self.fails(capsys, "train", "--data", "icdar2015:ic", "--name", "d", *TINY)
        assert "No space left on device" in message and "\n" not in message
        assert Path("runs/d/checkpoint.pt").read_bytes() == before

    def test_a_loss_that_explodes(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(PSENet, "loss_terms", lambda _, x, *rest: (x.sum() * math.nan,) * 2)
        message = self.fails(capsys, "train", "--lr", "9", *TINY)
        assert message == "--lr: expected a smaller one, got 9.0: the loss is nan"

    def test_are_shown_without_a_traceback(self, tmp_path):
        command = [sys.executable, "-m", "transfer.detect", "predict", tmp_path, tmp_path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith(self.PROGRAM)

    def test_help_says_where_to_run_the_commands(self, capsys):
        with pytest.raises(SystemExit):
            detect.main(["--help"])
        assert "from the clone of the repository" in capsys.readouterr().out


class TestCache:
    def read(self, folder, gigabytes=None):
        source = open_dataset(f"icdar2015:{folder}", "train")
        return source if gigabytes is None else CachedSource(source, gigabytes, threads=2)

    @pytest.mark.parametrize(("gigabytes", "cached"), [(1.0, 4), (2.5 * 96 * 64 * 4e-9, 2), (0, 0)])
    def test_crops_are_the_same_with_and_without_it(self, tmp_path, gigabytes, cached):
        folder = make_icdar(tmp_path, numbers=(1, 2, 3, 4, 801))
        source = self.read(folder, gigabytes)
        assert (len(source), len(source.cached), source.name(3)) == (4, cached, "img_4")
        plain = TrainingCrops(self.read(folder), CONFIG, 64, seed=0)
        kept = TrainingCrops(source, CONFIG, 64, seed=0)
        for k in range(12):  # three epochs, so that a crop that changed its picture would show
            assert all(map(torch.equal, plain[k], kept[k]))

    def test_only_the_pictures_of_a_subset_are_kept(self, tmp_path):
        source = self.read(make_icdar(tmp_path, numbers=(1, 2, 3, 4, 801)))
        data = TrainingCrops(source, CONFIG, 64, seed=0, subset=2)
        cached = CachedSource(source, 1.0, indices=data.indices)
        assert set(cached.cached) == set(data.indices.tolist()) and len(cached) == 4
        few = CachedSource(source, 1.5 * 96 * 64 * 4e-9, indices=data.indices)
        assert list(few.cached) == [data.indices[0]]

    def test_a_cached_picture_is_not_read_again(self, tmp_path):
        source = self.read(make_icdar(tmp_path), 1.0)
        (tmp_path / "ch4_training_images/img_1.jpg").unlink()
        assert source[0].image.size == (96, 64)

    def test_an_unreadable_picture_fails_when_it_is_needed(self, tmp_path):
        (make_icdar(tmp_path) / "ch4_training_images/img_1.jpg").write_bytes(b"no picture")
        source = self.read(tmp_path, 1.0)
        assert source[1].image.size == (96, 64)
        with pytest.raises(ValueError, match=r"img_1\.jpg"):
            source[0]

    def test_the_command_trains_the_same_detector_with_it(self, tmp_path, monkeypatch, capsys):
        make_icdar(tmp_path / "ic")
        monkeypatch.chdir(tmp_path)
        states = []
        for options in (["--subset", "1"], ["--subset", "1", "--cache", "0.1"]):
            command = ["train", "--data", "icdar2015:ic", "--name", "d", *TINY, *options]
            detect.main(command)
            states.append(vlpt.read_checkpoint("runs/d/checkpoint.pt")["state_dict"])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert "keeps 1 decoded pictures in memory" in capsys.readouterr().out
