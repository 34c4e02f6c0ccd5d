"""Tests of experiments/detect_min.py: what is learned, what is found, and how it is counted."""

import json
import math
import os
import subprocess
import sys
from collections import deque
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import data_stub
import vlpt
from experiments import detect_min as dm

REAL = Path(os.getenv("VLPT_ICDAR2015", Path(__file__).parents[2] / "shared/data/icdar2015"))
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, derandomize=True, max_examples=60)
SQUARE = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])


def rotated(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    quad = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(4, 60, 2)
    quad += rng.uniform(-2, 2, (4, 2))
    angle = rng.uniform(0, 2 * np.pi)
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return np.float32(quad @ turn + 100)


def arc(points: int = 7) -> np.ndarray:
    """A curved word: the part of a ring between two radii."""
    angles = np.linspace(np.pi, 2 * np.pi, points)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    return np.float32([*(60 * circle), *(40 * circle[::-1])]) + 100


class TestShrink:
    @quick
    @given(seeds, st.floats(0.05, 1))
    def test_equals_shapely_s_buffer(self, seed, rate):
        self.compare(rotated(seed), rate)

    @pytest.mark.parametrize("rate", [0.4, 0.7, 0.9])
    def test_equals_shapely_s_buffer_on_a_curve(self, rate):
        self.compare(arc(), rate)

    def compare(self, polygon, rate):
        whole = shapely.Polygon(polygon)
        wanted = whole.buffer(-whole.area * (1 - rate**2) / whole.length, quad_segs=64)
        got = dm.shrink(polygon, rate)
        assert got.dtype == np.float32
        apart = shapely.Polygon(got).symmetric_difference(wanted).area
        assert apart < 0.02 * whole.length * 0.1 + 1e-3 * whole.area
        assert wanted.buffer(0.05).contains(shapely.Polygon(got))

    def test_a_rectangle_by_hand(self):
        inner = dm.shrink(SQUARE, 0.5)  # d = 40 * 20 * 0.75 / 120 = 5
        assert sorted(inner.tolist()) == [[15, 15], [15, 25], [45, 15], [45, 25]]

    def test_the_direction_does_not_matter_and_a_line_has_no_inside(self):
        one, other = dm.shrink(SQUARE, 0.4), dm.shrink(SQUARE[::-1], 0.4)
        assert shapely.Polygon(one).equals(shapely.Polygon(other))
        assert dm.shrink(np.float32([[1, 1], [9, 1], [9, 1], [1, 1]]), 0.4) is None
        assert dm.shrink(np.float32([[3, 3]] * 4), 0.4) is None

    def test_of_two_parts_the_larger_is_kept(self):
        eight = np.float32([[0, 0], [40, 0], [40, 19], [60, 19], [60, 10], [90, 10],
                            [90, 30], [60, 30], [60, 21], [40, 21], [40, 40], [0, 40]])  # fmt: skip
        x = dm.shrink(eight, 0.4)[:, 0]
        assert x.max() < 45


class TestKernels:
    def test_lie_within_each_other_and_end_at_the_smallest_rate(self):
        kernels, valid = dm.draw_kernels([SQUARE], [False], (40, 64), 0.4)
        assert kernels.shape == (7, 40, 64) and kernels.dtype == np.uint8 and valid.all()
        assert (np.diff(kernels.astype(int), axis=0) <= 0).all()
        sums = kernels.sum((1, 2)).tolist()
        assert sums == sorted(set(sums), reverse=True) and sums[0] == 41 * 21
        d = 40 * 20 * (1 - 0.4**2) / 120  # 5.6: what is left is 28.8 * 8.8
        assert sums[-1] == (round(50 - d) - round(10 + d) + 1) * (round(30 - d) - round(10 + d) + 1)
        middle = dm.shrink(SQUARE, 0.7)  # kernel 4 of 7, r = 1 - 0.6 * 3 / 6
        (x0, y0), (x1, y1) = np.rint(middle.min(0)), np.rint(middle.max(0))
        assert sums[3] == (x1 - x0 + 1) * (y1 - y0 + 1)

    def test_where_the_truth_is_unknown(self):
        region = SQUARE + np.float32([30, 0])
        kernels, valid = dm.draw_kernels([SQUARE, region], [False, True], (40, 90), 0.4)
        assert kernels[0, 20, 75] == 0 and valid[20, 75] == 0  # in the region
        assert kernels[0, 20, 45] == 1 and valid[20, 45] == 1  # a word, though in it
        assert valid[5].all()

    def test_touching_words_are_apart_in_the_smallest_kernel(self):
        right = SQUARE + np.float32([41, 0])
        kernels, _ = dm.draw_kernels([SQUARE, right], [False, False], (40, 110), 0.4)
        parts = [cv2.connectedComponents(kernel, connectivity=4)[0] - 1 for kernel in kernels]
        assert parts[0] == 1 and parts[-1] == 2


class TestCrops:
    def pages(self, count=3):
        return dm.open_pages("synth", "train", 96, count)

    def test_words_and_pixels_move_together(self):
        image = np.zeros((100, 200, 3), np.uint8)
        image[40:60, 120:160] = 255
        quad = np.float32([[120, 40], [160, 40], [160, 60], [120, 60]])
        page = dm.Page(Image.fromarray(image), [quad], np.array([False]))
        for seed in range(20):
            rng = np.random.default_rng(seed)
            crop = dm.crop_page(page, 64, float(rng.uniform(0.4, 1.2)), rng)
            assert crop.image.size == (64, 64)
            kernels, _ = dm.draw_kernels(crop.polygons, crop.ignored, (64, 64), 0.4)
            pixels = np.asarray(crop.image).mean(-1)
            bright = pixels > pixels.max() / 2 if kernels[0].any() else np.zeros((64, 64), bool)
            bright &= ~(pixels == dm.GREY[0])
            both, either = (bright & (kernels[0] > 0)).sum(), (bright | (kernels[0] > 0)).sum()
            assert both >= 0.75 * either

    def test_follow_from_the_seed_and_are_of_the_right_types(self):
        data = dm.Crops(self.pages(), None, 96, 64, 0.4, seed=1)
        pixels, kernels, valid = data[5]
        assert pixels.shape == (3, 64, 64) and kernels.shape == (7, 64, 64)
        assert valid.shape == (64, 64) and {x.dtype for x in data[5]} == {torch.uint8}
        again = dm.Crops(self.pages(), None, 96, 64, 0.4, seed=1)[5]
        assert all(torch.equal(a, b) for a, b in zip(data[5], again, strict=True))
        other = dm.Crops(self.pages(), None, 96, 64, 0.4, seed=2)[5]
        assert not torch.equal(pixels, other[0])

    def test_a_smaller_subset_is_part_of_a_larger_one(self):
        few, more = (dm.Crops(self.pages(9), n, 96, 64, 0.4, 0).indices for n in (3, 6))
        assert len(few) == 3 and set(few) < set(more)
        with pytest.raises(ValueError, match="--subset: got 10, wanted 1 to 9 pictures"):
            dm.Crops(self.pages(9), 10, 96, 64, 0.4, 0)


def random_maps(seed, B=2, n=7, side=5):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, n, side, side, generator=rng, dtype=torch.float64) * 2
    kernels = (torch.rand(B, n, side, side, generator=rng) < 0.3).to(torch.uint8)
    valid = (torch.rand(B, side, side, generator=rng) < 0.8).to(torch.uint8)
    return logits, kernels, valid


def dice_by_hand(scores, truth, where):
    top = left = right = 0.0
    for s, g, w in zip(scores, truth, where, strict=True):
        if w:
            top, left, right = top + s * g, left + s * s, right + g * g
    return 2 * top / max(left + right, 1e-3)


def hard_by_hand(scores, truth, valid):
    """The text pixels and the best-scored three times as many others, by sorting."""
    text = [k for k, (g, v) in enumerate(zip(truth, valid, strict=True)) if g and v]
    others = [k for k, (g, v) in enumerate(zip(truth, valid, strict=True)) if not g and v]
    if text:
        others = sorted(others, key=lambda k: -scores[k])[: 3 * len(text)]
    return [k in {*text, *others} for k in range(len(scores))]


class TestLoss:
    @quick
    @given(seeds, st.integers(1, 3), st.integers(1, 6))
    def test_equals_loops(self, seed, B, side):
        logits, kernels, valid = random_maps(seed, B, 7, side)
        text, kernel = dm.psenet_loss(logits, kernels, valid)
        texts, parts = [], []
        for b in range(B):
            scores = [[1 / (1 + math.exp(-x)) for x in m.flatten().tolist()] for m in logits[b]]
            truth, where = kernels[b].flatten(1).tolist(), valid[b].flatten().tolist()
            hard = hard_by_hand(scores[0], truth[0], where)
            texts.append(1 - dice_by_hand(scores[0], truth[0], hard))
            inside = [v and s >= 0.5 for v, s in zip(where, scores[0], strict=True)]
            parts += [1 - dice_by_hand(scores[i], truth[i], inside) for i in range(1, 7)]
        assert text.item() == pytest.approx(sum(texts) / len(texts), abs=1e-9)
        assert kernel.item() == pytest.approx(sum(parts) / len(parts), abs=1e-9)

    def test_is_zero_for_the_truth_and_one_for_its_opposite(self):
        kernels, valid = dm.draw_kernels([SQUARE], [False], (40, 64), 0.4)
        kernels, valid = torch.from_numpy(kernels)[None], torch.from_numpy(valid)[None]
        right = (kernels.double() * 2 - 1) * 50
        assert [x.item() for x in dm.psenet_loss(right, kernels, valid)] == pytest.approx([0, 0])
        assert [x.item() for x in dm.psenet_loss(-right, kernels, valid)] == pytest.approx([1, 1])

    @quick
    @given(seeds)
    def test_nothing_is_learned_where_the_truth_is_unknown(self, seed):
        logits, kernels, valid = random_maps(seed)
        logits.requires_grad_()
        before = [x.item() for x in dm.psenet_loss(logits, kernels, valid)]
        sum(dm.psenet_loss(logits, kernels, valid)).backward()
        unknown = (valid == 0)[:, None].expand_as(logits)
        assert not logits.grad[unknown].any() and logits.grad[~unknown].any()
        changed = torch.where(unknown, -logits.detach(), logits.detach())
        flipped = torch.where(unknown, 1 - kernels, kernels)
        assert [x.item() for x in dm.psenet_loss(changed, flipped, valid)] == before

    def test_a_picture_without_words_has_a_loss_and_no_gradient(self):
        logits, kernels, valid = random_maps(0)
        logits.requires_grad_()
        sum(dm.psenet_loss(logits, kernels * 0, valid)).backward()
        assert torch.isfinite(logits.grad).all() and not logits.grad.any()


def expand_by_hand(kernels):
    """Layer by layer and pixel by pixel, with sets and a queue."""
    height, width = kernels.shape[1:]
    labels, count = {}, 0

    def around(p):
        steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
        spots = ((p[0] + dy, p[1] + dx) for dy, dx in steps)
        return [q for q in spots if 0 <= q[0] < height and 0 <= q[1] < width]

    for start in np.argwhere(kernels[-1]).tolist():
        if tuple(start) not in labels:
            count += 1
            labels[tuple(start)], queue = count, deque([tuple(start)])
            while queue:
                for q in around(queue.popleft()):
                    if kernels[-1][q] and q not in labels:
                        labels[q] = count
                        queue.append(q)
    for kernel in kernels[-2::-1]:
        grown = True
        while grown:
            grown = {}
            for p in map(tuple, np.argwhere(kernel).tolist()):
                near = [labels[q] for q in around(p) if q in labels]
                if p not in labels and near:
                    grown[p] = min(near)
            labels |= grown
    out = np.zeros((height, width), int)
    for p, label in labels.items():
        out[p] = label
    return out


class TestExpand:
    @quick
    @given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
    def test_equals_a_slow_expansion(self, seed, n, height, width):
        rng = np.random.default_rng(seed)
        chance = rng.random((height, width))
        kernels = np.stack([chance < level for level in np.linspace(0.9, 0.2, n)])
        got = dm.expand(kernels)
        wanted = expand_by_hand(kernels)
        assert got.max() == wanted.max()
        pairs = set(zip(got.ravel().tolist(), wanted.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})

    def test_touching_words_stay_apart_and_grow_to_their_edges(self):
        right = SQUARE + np.float32([41, 0])
        kernels, _ = dm.draw_kernels([SQUARE, right], [False, False], (40, 110), 0.4)
        labels = dm.expand(kernels)
        assert np.array_equal(labels > 0, kernels[0] > 0)
        assert set(labels[10:31, 10:48].ravel()) == {1} and set(labels[10:31, 54:90].ravel()) == {2}

    def test_what_has_no_kernel_is_nothing(self):
        kernels = np.zeros((3, 8, 8), bool)
        kernels[0, :, :3] = kernels[1, :, :2] = True
        assert not dm.expand(kernels).any()


class TestOutline:
    @quick
    @given(seeds)
    def test_gives_the_smallest_rectangle_around_what_was_drawn(self, seed):
        quad = rotated(seed)
        labels = cv2.fillPoly(np.zeros((220, 220), np.int32), [np.rint(quad).astype(int)], 1)
        scores = np.full((220, 220), 0.9)
        found, means = dm.outline(labels, scores, False, 0.5, 10)
        assert means == [pytest.approx(0.9)] and found[0].shape == (4, 2)
        pixels = shapely.MultiPoint(np.argwhere(labels)[:, ::-1])
        one = shapely.Polygon(found[0])
        assert one.area == pytest.approx(pixels.minimum_rotated_rectangle.area, rel=1e-3)
        assert one.buffer(0.01).contains(pixels)
        assert cv2.contourArea(found[0].astype(np.float32), oriented=True) > 0  # clockwise

    def test_curved_text_keeps_its_shape(self):
        labels = cv2.fillPoly(np.zeros((220, 220), np.int32), [arc(30).astype(int)], 1)
        found, _ = dm.outline(labels, np.ones((220, 220)), True, 0.5, 10)
        one, other = shapely.Polygon(found[0]), shapely.Polygon(arc(30))
        assert len(found[0]) > 4 and one.intersection(other).area > 0.9 * one.union(other).area

    def test_the_small_and_the_unsure_are_dropped(self):
        labels, scores = np.zeros((40, 60), np.int32), np.full((40, 60), 0.9)
        labels[2:5, 2:5], labels[10:20, 10:30], labels[25:35, 10:30] = 1, 2, 3
        scores[25:35] = 0.4
        found, means = dm.outline(labels, scores, False, 0.5, 10)
        assert means == [pytest.approx(0.9)] and found[0].min(0).tolist() == [10, 10]


# ------------------------------------------------------------------------------------ the score


def clip_by_hand(subject, window):
    """Sutherland and Hodgman in fractions: the part of a polygon within a convex one."""

    def side(p, a, b):
        return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])

    for a, b in zip(window, window[1:] + window[:1], strict=True):
        kept = []
        for p, q in zip(subject, subject[1:] + subject[:1], strict=True):
            sp, sq = side(p, a, b), side(q, a, b)
            if sp >= 0:
                kept.append(p)
            if (sp > 0 > sq) or (sp < 0 < sq):
                t = Fraction(sp) / (sp - sq)
                kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        subject = kept
    return subject


def area_by_hand(polygon):
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(Fraction(p[0] * q[1] - q[0] * p[1]) for p, q in pairs)) / 2


def match_by_hand(truth, ignored, found):
    """The rules of the competition, one by one; the areas are exact."""
    counted = []
    for box in found:
        shares = [area_by_hand(clip_by_hand(box, t)) / area_by_hand(box)
                  for t, skip in zip(truth, ignored, strict=True) if skip]  # fmt: skip
        assume(all(abs(s - Fraction(1, 2)) > Fraction(1, 10**6) for s in shares))
        if not any(s > Fraction(1, 2) for s in shares):
            counted.append(box)
    words = [t for t, skip in zip(truth, ignored, strict=True) if not skip]
    used, matched = [False] * len(counted), 0
    for word in words:
        for k, box in enumerate(counted):
            common = area_by_hand(clip_by_hand(word, box))
            iou = common / (area_by_hand(word) + area_by_hand(box) - common)
            assume(abs(iou - Fraction(1, 2)) > Fraction(1, 10**6))
            if not used[k] and iou > Fraction(1, 2):
                used[k], matched = True, matched + 1
                break
    return [matched, len(words), len(counted)]


@st.composite
def parallelograms(draw):
    x, y, width, height = (draw(st.integers(*r)) for r in ((0, 9), (0, 9), (2, 9), (2, 9)))
    lean = draw(st.integers(-1, 1))
    return [(x, y), (x + width, y), (x + width + lean, y + height), (x + lean, y + height)]


def box(x, y, width, height):
    return np.float32([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


class TestScore:
    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(st.lists(st.tuples(parallelograms(), st.booleans()), max_size=6),
           st.lists(parallelograms(), max_size=6))  # fmt: skip
    @example([([(0, 0), (4, 0), (4, 4), (0, 4)], False)] * 2, [[(0, 0), (4, 0), (4, 4), (0, 4)]])
    def test_equals_slow_counting_with_exact_areas(self, truth, found):
        polygons, ignored = [t for t, _ in truth], [skip for _, skip in truth]
        wanted = match_by_hand(polygons, ignored, found)
        as_arrays = [[np.float32(p) for p in group] for group in (polygons, found)]
        assert dm.match(as_arrays[0], ignored, as_arrays[1]).tolist() == wanted

    def test_an_overlap_of_exactly_a_half_is_too_little(self):
        assert dm.match([box(0, 0, 8, 4)], [False], [box(0, 0, 4, 4)]).tolist() == [0, 1, 1]
        assert dm.match([box(0, 0, 8, 4)], [False], [box(0, 0, 5, 4)]).tolist() == [1, 1, 1]
        assert dm.match([box(0, 0, 4, 4)], [True], [box(0, 0, 8, 4)]).tolist() == [0, 0, 1]
        assert dm.match([box(0, 0, 5, 4)], [True], [box(0, 0, 8, 4)]).tolist() == [0, 0, 0]

    def test_a_word_found_twice_counts_once(self):
        assert dm.match([box(0, 0, 8, 4)], [False], [box(0, 0, 8, 4)] * 2).tolist() == [1, 1, 2]

    def test_a_quad_that_crosses_itself_does_not_stop_the_count(self):
        crossed = box(0, 0, 8, 4)[[0, 2, 1, 3]]
        assert dm.match([crossed], [False], [box(0, 0, 8, 4)]).tolist() == [0, 1, 1]

    def test_sums_over_the_set_and_means_are_harmonic(self):
        score = dm.f_score(np.array([3, 6, 4]))
        assert score == {"precision": 0.75, "recall": 0.5, "f": pytest.approx(0.6)}
        assert dm.f_score(np.zeros(3, int))["f"] == 0


# ------------------------------------------------------------------------------------ the model


class TestModel:
    @pytest.mark.parametrize(("name", "size"), [
        ("clip_resnet", {"width": 8, "layers": (1, 1, 1, 1)}), ("resnet18", {}),
        ("clip_resnet", {"width": 8, "layers": (1, 1, 1)}),
    ])  # fmt: skip
    def test_scores_every_pixel_from_three_stages_or_four(self, name, size):
        model = dm.PSENet(vlpt.build_backbone(name, **size), 16)
        logits = model(torch.randn(2, 3, 64, 96))
        assert logits.shape == (2, 7, 64, 96)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_each_level_hears_of_the_coarser_ones_and_not_of_the_finer(self):
        model, seen = dm.PSENet(vlpt.build_backbone("resnet18"), 4).eval(), []
        model.fuse.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        model(images)
        for stage in range(4):
            kept = model.lateral[stage].bias.data.clone()
            model.lateral[stage].bias.data += 1
            model(images)
            model.lateral[stage].bias.data = kept
            levels = (seen[-1] - seen[0]).abs().amax((1, 2)).unflatten(0, (4, 4)).amax(1)
            coarsest_first = [k >= 3 - stage for k in range(4)]
            assert (levels > 1e-4).tolist() == coarsest_first

    def test_matrices_decay_and_gains_do_not(self, monkeypatch):
        groups, adam = [], torch.optim.AdamW
        monkeypatch.setattr(torch.optim, "AdamW", lambda g, lr: groups.extend(g) or adam(g, lr=lr))
        args = dm.parse_args(["train", *TINY, "--samples", "4"])
        model = dm.build({"backbone": "tiny", "width": 8, "device": "cpu"})
        dm.fit(model, dm.Crops(dm.open_pages("synth", "train", 64, 4), None, 64, 64, 0.4, 0), args)
        decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert decays == {id(p) for p in model.parameters() if p.ndim > 1}
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))

    def test_starts_from_an_export_or_a_run(self, tmp_path):
        torch.manual_seed(0)
        pretrained = vlpt.VLPT(vlpt.TINY)
        vlpt.export_backbone(pretrained, tmp_path / "b.pt")
        options = {"backbone": "tiny", "width": 8, "device": "cpu"}
        model = dm.build(options, str(tmp_path / "b.pt"))
        for key, value in pretrained.backbone.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[key], value)
        scratch = dm.build(options)
        assert not torch.equal(
            scratch.backbone["conv1"].weight, pretrained.backbone["conv1"].weight
        )

    def test_overfits_four_pictures(self):
        torch.manual_seed(0)
        threads = torch.get_num_threads()
        pages = dm.open_pages("synth", "train", 128, 4, seed=3)
        args = dm.parse_args(["train", "--lr", "3e-3", "--samples", "360", "--batch", "4",
                              "--workers", "0", "--long", "128", "--crop", "128"])  # fmt: skip
        model = dm.build({"backbone": "tiny", "width": 32, "device": "cpu"})
        rows = dm.fit(model, dm.Crops(pages, None, 128, 128, 0.4, 0), args)
        torch.set_num_threads(threads)
        found = dm.evaluate(model, pages, {"long": 128, "curved": False, "score": 0.7})
        assert rows[-1]["text"] < 0.5 * rows[0]["text"]
        assert found["pictures"] == 4 and found["words"] >= 4 and found["f"] >= 0.95, found


# ----------------------------------------------------------------------------- sources, commands

TINY = ["--samples", "8", "--batch", "4", "--long", "64", "--crop", "64", "--width", "8",
        "--workers", "0"]  # fmt: skip


def make_icdar(root: Path, numbers=(1, 2, 801, 802)) -> Path:
    images = root / "ch4_training_images"
    labels = root / "ch4_training_localization_transcription_gt"
    images.mkdir(parents=True)
    labels.mkdir()
    for n in numbers:
        Image.new("RGB", (96, 64), (n % 256, 80, 90)).save(images / f"img_{n}.jpg")
        text = "\ufeff10,10,50,10,50,30,10,30,word\r\n60,10,90,10,90,30,60,30,###\r\n"
        (labels / f"gt_img_{n}.txt").write_text(text, encoding="utf-8", newline="")
    return root


def make_totaltext(root: Path, line: str) -> Path:
    for folder in ("Train", "Test"):
        (root / "Images" / folder).mkdir(parents=True)
        (root / "txt_format" / folder).mkdir(parents=True)
        for n in (1, 2):
            Image.new("RGB", (96, 64)).save(root / "Images" / folder / f"img{n}.jpg")
            (root / "txt_format" / folder / f"poly_gt_img{n}.txt").write_text(line)
    return root


class TestSources:
    def test_unreadable_regions_are_ignored(self, tmp_path):
        pages = dm.open_pages(f"icdar2015:{make_icdar(tmp_path)}", "heldout")
        assert (len(pages), pages.name(0)) == (2, "img_801")
        page = pages[0]
        assert page.ignored.tolist() == [False, True]
        assert [p[0].tolist() for p in page.polygons] == [[10, 10], [60, 10]]

    def test_polygons_of_total_text(self, tmp_path):
        lines = (
            "x: [[10 30 50 50 30\n 10]], y: [[10 5 10 30 25 30]], ornt: [u'c'], "
            "transcriptions: [u'It's']\n"
            "x: [[60 90 90]], y: [[10 10 30]], ornt: [u'#'], transcriptions: [u'#']\n"
        )
        spec = f"totaltext:{make_totaltext(tmp_path, lines)}"
        assert [len(dm.open_pages(spec, half)) for half in data_stub.SPLITS] == [2, 2]
        page = dm.open_pages(spec, "heldout")[0]
        assert page.polygons[0].tolist() == [
            [10, 10],
            [30, 5],
            [50, 10],
            [50, 30],
            [30, 25],
            [10, 30],
        ]
        assert page.ignored.tolist() == [False, True] and page.image.size == (96, 64)

    def test_a_label_of_total_text_that_is_no_such_thing_is_named(self, tmp_path):
        spec = f"totaltext:{make_totaltext(tmp_path, '10,10,50,10,word')}"
        with pytest.raises(ValueError, match=r"poly_gt_img1\.txt: got '10,10,50,10,word', wanted"):
            dm.open_pages(spec, "train")

    def test_synthtext_and_the_renderer(self, tmp_path):
        data_stub.write_synthtext(tmp_path, 12, seed=0, size=64)
        for spec, name in (
            (f"synthtext:{tmp_path}", "picture_0"),
            ("synth", "picture_0_of_seed_0"),
        ):
            pages = dm.open_pages(spec, "train", 64, 3)
            assert pages.name(0) == name
            assert len(pages[0].polygons) == len(pages[0].ignored) > 0

    @pytest.mark.skipif(not REAL.is_dir(), reason="no ICDAR 2015 folder")
    def test_icdar_itself(self):
        pages = dm.open_pages(f"icdar2015:{REAL}", "heldout")
        assert len(pages) == 200 and pages.name(0) == "img_801"
        perfect = sum(dm.match(page.polygons, page.ignored, page.polygons)
                      for page in (pages[k] for k in range(20)))  # fmt: skip
        assert dm.f_score(perfect)["f"] == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A detector that was hardly trained, by the command."""
    root = tmp_path_factory.mktemp("detect")
    make_icdar(root / "ic")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        dm.main(["train", "--data", "icdar2015:ic", "--name", "d", *TINY])
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
        model, options = dm.load(run, "cpu")
        assert not model.training and (options["long"], options["smallest"]) == (64, 0.4)

    def test_eval_writes_the_competition_s_files(self, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        quad = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])
        monkeypatch.setattr(
            dm, "detect", lambda *_: ([quad, quad + np.float32([60, 30])], [0.9, 0.8])
        )
        (trained / "runs/d/results").mkdir(exist_ok=True)
        (trained / "runs/d/results/res_img_7.txt").write_text("of another set")
        dm.main(["eval", "runs/d", "--data", "icdar2015:ic"])
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
        monkeypatch.setattr(dm, "detect", lambda *_: ([quad], [0.91]))
        Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
        dm.main(["predict", "runs/d", str(tmp_path / "photo.png")])
        out = trained / "runs/d/predictions"
        entry = json.loads((out / "photo.json").read_text())
        assert entry["text"] == [{"polygon": quad.tolist(), "score": 0.91}]
        assert (entry["width"], entry["height"]) == (96, 64)
        overlay = np.asarray(Image.open(out / "photo.png"))
        assert overlay.shape == (64, 96, 3)
        assert overlay[10, 30].tolist() == [255, 0, 80] and overlay[20, 30].tolist() == [0, 0, 0]
        assert not list(out.glob("*.part"))
        assert "1 texts; wrote" in capsys.readouterr().out

    def test_predict_takes_the_pictures_of_a_folder(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(trained)
        for name in ("one.jpg", "two.PNG"):
            Image.new("RGB", (64, 64)).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        dm.main(["predict", "runs/d", str(tmp_path)])
        out = trained / "runs/d/predictions"
        assert {"one.json", "one.png", "two.json", "two.png"} <= {p.name for p in out.iterdir()}

    def test_detections_are_in_the_picture_s_own_pixels(self):
        """A model that sees bright pixels as text, shown a bright box at another scale."""

        class Bright(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Conv2d(1, 1, 1)

            def forward(self, images):
                assert images.shape[2] % 32 == images.shape[3] % 32 == 0
                return (images[:, :1] * 20 - 10).expand(-1, 7, -1, -1)

        image = np.zeros((150, 300, 3), np.uint8)
        image[60:90, 120:240] = 255
        options = {"long": 200, "curved": False, "score": 0.7}
        polygons, means = dm.detect(Bright(), Image.fromarray(image), options)
        assert len(polygons) == 1 and means[0] > 0.9
        truth = np.array([[120, 60], [239, 89]])
        assert np.abs([polygons[0].min(0), polygons[0].max(0)] - truth).max() <= 1.5

    def test_the_same_seed_gives_the_same_detector(self, trained, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        make_icdar(tmp_path / "ic")
        dm.main(["train", "--data", "icdar2015:ic", "--name", "d", *TINY])
        one, other = (vlpt.read_checkpoint(p / "runs/d")["state_dict"] for p in (trained, tmp_path))
        assert all(torch.equal(one[key], other[key]) for key in one)


class TestMistakes:
    """Each is one line that names what is wrong, and leaves nothing half-written."""

    def fails(self, capsys, *argv):
        with pytest.raises(SystemExit) as stop:
            dm.main([*map(str, argv)])
        return str(stop.value) if stop.value.code != 2 else capsys.readouterr().err.splitlines()[-1]

    def test_other_checkpoints(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        torch.save({"state_dict": {}}, "other.pt")
        Path("noise.pt").write_bytes(b"noise")
        Image.new("RGB", (32, 32)).save("a.png")
        told = self.fails(capsys, "predict", "other.pt", "a.png")
        assert told == ("detect_min.py: error: other.pt: not a detector, "
                        "wanted what detect_min.py train left")  # fmt: skip
        told = self.fails(capsys, "predict", "noise.pt", "a.png")
        assert told.startswith("detect_min.py: error: noise.pt: not a readable checkpoint")
        assert "nowhere" in self.fails(capsys, "eval", "nowhere")
        told = self.fails(capsys, "train", "--init", "other.pt", *TINY)
        assert told.startswith("detect_min.py: error: other.pt: not the weights of clip_resnet: ")
        vlpt.export_backbone(vlpt.build_backbone("resnet18"), "r18.pt")
        told = self.fails(capsys, "train", "--init", "r18.pt", *TINY)
        assert "r18.pt: not the weights of clip_resnet" in told and "\n" not in told
        assert not Path("runs").exists()

    def test_empty_folders(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        told = self.fails(capsys, "predict", "runs/d", tmp_path)
        assert told.endswith(f"error: {tmp_path}: got no picture in it, wanted .jpg or .png")
        told = self.fails(capsys, "eval", "runs/d", "--data", f"icdar2015:{tmp_path}")
        assert "ch4_training_images: not found; wanted" in told
        for folder in ("Train", "Test"):
            (tmp_path / "Images" / folder).mkdir(parents=True)
        told = self.fails(capsys, "eval", "runs/d", "--data", f"totaltext:{tmp_path}")
        assert "Images/Test: got no picture, wanted" in told

    def test_pictures_that_are_cut_off(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "cut.jpg")
        content = (tmp_path / "cut.jpg").read_bytes()
        (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
        told = self.fails(capsys, "predict", "runs/d", tmp_path / "cut.jpg")
        assert "cut.jpg: not a readable picture (" in told and "\n" not in told
        root = make_icdar(tmp_path / "ic")
        (tmp_path / "cut.jpg").replace(root / "ch4_training_images/img_2.jpg")
        told = self.fails(capsys, "train", "--data", f"icdar2015:{root}", "--name", "cut", *TINY)
        assert "img_2.jpg: not a readable picture (" in told
        assert not Path("runs/cut").exists()

    def test_numbers_and_names(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for argv, told in (
            (["--crop", "48"], "--crop: got 48, wanted a multiple of 32"),
            (["--samples", "4", "--batch", "8"], "--samples: got 4, wanted at least --batch 8"),
            (["--smallest", "1.5"], "--smallest: got '1.5', wanted a number above 0 and below 1"),
            (["--lr", "nan"], "--lr: got 'nan', wanted a number above 0"),
            (["--width", "0"], "--width: got '0', wanted a whole number of at least 1"),
            (["--name", "../x"], "--name: got '../x', wanted the name of a folder in runs/"),
            (["--sample", "9"], "unrecognized arguments: --sample 9"),
            (["--backbone", "vgg"], "invalid choice: 'vgg'"),
        ):
            assert told in self.fails(capsys, "train", *argv)
        told = self.fails(capsys, "train", "--data", "coco:x", *TINY)
        assert told == f"detect_min.py: error: --data: got 'coco:x', wanted {dm.SOURCES}"
        told = self.fails(capsys, "eval", "runs/d", "--count", "0")
        assert told.endswith("--count: got '0', wanted a whole number of at least 1; see --help")
        Path("a.jsonl").write_text('{"image": "a.png", "words": ["a"]}\n' * 11)
        Image.new("RGB", (32, 32)).save("a.png")
        told = self.fails(capsys, "train", "--data", "jsonl:a.jsonl", *TINY)
        assert told.endswith("a.png: has no quads, wanted one for each word")

    @pytest.mark.parametrize("workers", [0, 1])
    def test_what_is_wrong_with_a_source_is_told(self, tmp_path, monkeypatch, capsys, workers):
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (32, 32)).save("a.png")
        entry = '{"image": "a.png", "words": ["a"], "quads": [[[0, 0], [9, 0], [9, 9]]]}\n'
        Path("a.jsonl").write_text(entry * 11)
        options = ["train", "--data", "jsonl:a.jsonl", *TINY, "--workers", workers]
        assert "a.jsonl:1: " in self.fails(capsys, *options)
        Path("a.jsonl").write_text('{"image": "a.png", "words": ["a"]}\n' * 11)
        told = self.fails(capsys, *options)
        assert told == "detect_min.py: error: a.png: has no quads, wanted one for each word"

    def test_a_pre_training_and_a_file_are_not_replaced(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("runs/demo").mkdir(parents=True)
        Path("runs/file").touch()
        for name in ("run.json", "checkpoint.pt"):
            Path(f"runs/demo/{name}").write_text("theirs")
        monkeypatch.setattr(dm, "fit", None)  # it is found before
        told = self.fails(capsys, "train", "--name", "demo", *TINY)
        assert told.endswith("--name: got demo: a pre-training, wanted another")
        told = self.fails(capsys, "train", "--name", "file/x", *TINY)
        assert told.endswith("--name: got file/x: runs/file is a file, wanted another")
        assert Path("runs/demo/checkpoint.pt").read_text() == "theirs"

    def test_names_that_occur_twice(self, tmp_path, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            Image.new("RGB", (32, 32)).save(tmp_path / folder / "1.png")
        told = self.fails(capsys, "predict", "runs/d", tmp_path / "a/1.png", tmp_path / "b")
        assert told.endswith("IMAGE: got 2 named 1, wanted each name once")
        quads = ', "words": ["a"], "quads": [[[1, 1], [9, 1], [9, 9], [1, 9]]]}\n'
        held = "".join(f'{{"image": "{k}/1.png"{quads}' for k in "ab" * 10)
        (tmp_path / "d.jsonl").write_text(held)
        dm.main(["eval", "runs/d", "--data", "icdar2015:ic"])
        score, results = (Path(f"runs/d/{name}") for name in ("score.json", "results"))
        before = score.read_text(), sorted(results.iterdir())
        told = self.fails(capsys, "eval", "runs/d", "--data", f"jsonl:{tmp_path}/d.jsonl")
        assert told.endswith("res_1.txt: two pictures have this name, wanted one")
        assert (score.read_text(), sorted(results.iterdir())) == before  # nothing is lost

    def test_a_new_detector_has_no_score_yet(self, trained, monkeypatch):
        monkeypatch.chdir(trained)
        dm.main(["train", "--data", "icdar2015:ic", "--name", "again", *TINY])
        dm.main(["eval", "runs/again", "--data", "icdar2015:ic"])
        assert Path("runs/again/score.json").exists()
        dm.main(["train", "--data", "icdar2015:ic", "--name", "again", *TINY])
        assert not Path("runs/again/score.json").exists()

    def test_a_full_disk_leaves_the_old_detector(self, trained, monkeypatch, capsys):
        monkeypatch.chdir(trained)
        held = Path("runs/d/checkpoint.pt").read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        told = self.fails(capsys, "train", "--data", "icdar2015:ic", "--name", "d", *TINY)
        assert told.endswith("cannot write runs/d/checkpoint.pt: No space left on device; what was "
                             "there is intact")  # fmt: skip
        assert Path("runs/d/checkpoint.pt").read_bytes() == held

    def test_a_loss_that_explodes(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(dm, "psenet_loss", lambda *_: (torch.tensor(math.nan),) * 2)
        told = self.fails(capsys, "train", "--lr", "9", *TINY)
        assert told == "detect_min.py: error: --lr: got 9.0, the loss is nan; wanted a smaller one"

    def test_the_command_line_without_a_traceback(self, tmp_path):
        command = [sys.executable, dm.__file__, "eval", "nowhere"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.startswith("detect_min.py: error: ")
