"""Tests of transfer/psenet.py and what it is made of: targets, loss, network, and polygons."""

import json
import math
import zlib
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import vlpt
from transfer import heads, outlines, psenet
from transfer.outlines import shrink_polygon
from transfer.psenet import draw_kernels
from transfer.pyramid import DetectorConfig

seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, derandomize=True, max_examples=60)
SQUARE = np.float32([[10, 10], [50, 10], [50, 30], [10, 30]])
DUMBBELL = np.float32(
    [
        [0, 0],
        [40, 0],
        [40, 16],
        [60, 16],
        [60, 0],
        [100, 0],
        [100, 40],
        [60, 40],
        [60, 24],
        [40, 24],
        [40, 40],
        [0, 40],
    ]
)


def random_quad(seed: int) -> np.ndarray:
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


def shrink_to_one(polygon: np.ndarray, rate: float) -> np.ndarray:
    (part,) = shrink_polygon(polygon, rate)
    return part


class TestShrinking:
    @quick
    @given(seeds, st.floats(0.05, 1))
    def test_equals_the_buffer_of_shapely(self, seed, rate):
        self.compare(random_quad(seed), rate)

    @pytest.mark.parametrize("rate", [0.4, 0.7, 0.9])
    def test_equals_the_buffer_of_shapely_on_a_curve(self, rate):
        self.compare(arc(), rate)

    def compare(self, polygon, rate):
        whole = shapely.Polygon(polygon)
        distance = whole.area * (1 - rate**2) / whole.length
        expected = whole.buffer(-distance, quad_segs=64)
        got = shrink_to_one(polygon, rate)
        assert got.dtype == np.float32
        difference = shapely.Polygon(got).symmetric_difference(expected).area
        assert difference < 0.02 * whole.length * 0.1 + 1e-3 * whole.area
        assert expected.buffer(0.05).contains(shapely.Polygon(got))

    def test_a_rectangle_by_hand(self):
        inner = shrink_to_one(SQUARE, 0.5)  # d = 40 * 20 * 0.75 / 120 = 5
        assert sorted(inner.tolist()) == [[15, 15], [15, 25], [45, 15], [45, 25]]

    def test_the_direction_of_the_outline_does_not_matter(self):
        one = shrink_to_one(SQUARE, 0.4)
        other = shrink_to_one(SQUARE[::-1], 0.4)
        assert shapely.Polygon(one).equals(shapely.Polygon(other))

    def test_a_line_and_a_point_have_no_inside(self):
        assert shrink_polygon(np.float32([[1, 1], [9, 1], [9, 1], [1, 1]]), 0.4) == []
        assert shrink_polygon(np.float32([[3, 3]] * 4), 0.4) == []

    def test_all_parts_of_a_polygon_with_a_narrow_waist_are_kept(self):
        parts = shrink_polygon(DUMBBELL, 0.4)
        assert len(parts) == 2
        assert sorted(part[:, 0].mean() < 50 for part in parts) == [False, True]
        areas = [shapely.Polygon(part).area for part in parts]
        assert areas[0] == pytest.approx(areas[1], rel=1e-3) and areas[0] > 100


class TestKernels:
    def test_lie_within_each_other_and_end_at_the_smallest_rate(self):
        kernels, valid = draw_kernels([SQUARE], [False], (40, 64), 0.4)
        assert kernels.shape == (7, 40, 64) and kernels.dtype == np.uint8 and valid.all()
        assert (np.diff(kernels.astype(int), axis=0) <= 0).all()
        sums = kernels.sum((1, 2)).tolist()
        assert sums == sorted(set(sums), reverse=True) and sums[0] == 41 * 21
        d = 40 * 20 * (1 - 0.4**2) / 120  # 5.6, so 28.8 * 8.8 pixels are left
        width = round(50 - d) - round(10 + d) + 1
        height = round(30 - d) - round(10 + d) + 1
        assert sums[-1] == width * height
        middle = shrink_to_one(SQUARE, 0.7)  # kernel 4 of 7 has r = 1 - 0.6 * 3 / 6
        (x0, y0), (x1, y1) = np.rint(middle.min(0)), np.rint(middle.max(0))
        assert sums[3] == (x1 - x0 + 1) * (y1 - y0 + 1)

    def test_of_random_quads_are_those_of_the_earlier_implementation(self):
        """The file was written by code that drew only the largest part and did not clip.

        Where rounding had moved a corner of a kernel out of the larger one ("clipped" pixels), the
        file holds the clipped kernels.
        """
        path = Path(__file__).with_name("kernels_of_random_quads.json")
        expected = json.loads(path.read_text())
        assert sum(entry["clipped"] == 0 for entry in expected) > 90
        for entry in expected:
            kernels, _ = draw_kernels([random_quad(entry["seed"])], [False], (200, 200), 0.4)
            assert kernels.sum((1, 2)).tolist() == entry["pixels"]
            assert zlib.crc32(np.packbits(kernels).tobytes()) == entry["crc32"]

    @quick
    @given(seeds)
    @example(3)  # in these, rounding moves a corner out of the larger kernel
    @example(25)
    @example(43)
    @example(56)
    @example(79)
    @example(83)
    def test_each_lies_within_the_next_larger_one(self, seed):
        kernels, _ = draw_kernels([random_quad(seed)], [False], (200, 200), 0.4)
        assert (np.diff(kernels.astype(int), axis=0) <= 0).all()

    def test_of_a_polygon_with_a_narrow_waist_have_two_parts_in_the_end(self):
        kernels, _ = draw_kernels([DUMBBELL], [False], (48, 110), 0.4)
        parts = [cv2.connectedComponents(kernel, connectivity=4)[0] - 1 for kernel in kernels]
        assert parts[0] == 1 and parts[-1] == 2
        assert (np.diff(kernels.astype(int), axis=0) <= 0).all()

    def test_where_the_truth_is_unknown(self):
        region = SQUARE + np.float32([30, 0])
        kernels, valid = draw_kernels([SQUARE, region], [False, True], (40, 90), 0.4)
        assert kernels[0, 20, 75] == 0 and valid[20, 75] == 0  # in the region
        assert kernels[0, 20, 45] == 1 and valid[20, 45] == 1  # in a word as well
        assert valid[5].all()

    def test_touching_words_are_apart_in_the_smallest_kernel(self):
        right = SQUARE + np.float32([41, 0])
        kernels, _ = draw_kernels([SQUARE, right], [False, False], (40, 110), 0.4)
        parts = [cv2.connectedComponents(kernel, connectivity=4)[0] - 1 for kernel in kernels]
        assert parts[0] == 1 and parts[-1] == 2

    @pytest.mark.parametrize(
        ("polygon", "too_thin"),
        [
            ([[0, 0], [200, 0], [200, 3], [0, 3]], True),  # 0.5 pixels are left
            ([[0, 0], [200, 0], [200, 9], [0, 9]], False),  # 1.8 pixels are left
            ([[5, 5], [5, 5], [5, 5], [5, 5]], True),
            (SQUARE, False),
            (DUMBBELL, False),
        ],
    )
    def test_of_a_small_word_are_too_thin(self, polygon, too_thin):
        assert outlines.kernel_is_too_thin(np.float32(polygon), 0.4) == too_thin


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


def hard_pixels_one_by_one(scores, truth, valid):
    """What `psenet.hard_pixels` does, one picture after the other."""
    text = truth.bool() & valid.bool()
    rest = ~truth.bool() & valid.bool()
    chosen = []
    for score, word, other in zip(scores, text, rest, strict=True):
        count = min(3 * int(word.sum()), int(other.sum()))
        if count:
            threshold = score[other].topk(count).values[-1]
            other = other & (score >= threshold)
        chosen.append(word | other)
    return torch.stack(chosen)


class TestLoss:
    @quick
    @given(seeds, st.integers(1, 4), st.integers(1, 8), st.floats(0, 1), st.booleans())
    def test_hard_pixels_of_a_batch_are_those_of_its_pictures(self, seed, B, side, share, ties):
        generator = torch.Generator().manual_seed(seed)
        scores, truth, valid = torch.rand(3, B, side, side, generator=generator)
        scores = (scores * 4).round() / 4 if ties else scores
        truth = (truth < share * torch.arange(B).view(-1, 1, 1)).byte()  # none in picture 0
        valid = (valid < 0.8).byte()
        chosen = psenet.hard_pixels(scores, truth, valid)
        assert torch.equal(chosen, hard_pixels_one_by_one(scores, truth, valid))

    @quick
    @given(seeds, st.integers(1, 3), st.integers(1, 6))
    def test_equals_loops(self, seed, B, side):
        logits, kernels, valid = random_maps(seed, B, 7, side)
        text, kernel = psenet.psenet_loss(logits, kernels, valid)
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
        kernels, valid = draw_kernels([SQUARE], [False], (40, 64), 0.4)
        kernels, valid = torch.from_numpy(kernels)[None], torch.from_numpy(valid)[None]
        right = (kernels.double() * 2 - 1) * 50
        assert [x.item() for x in psenet.psenet_loss(right, kernels, valid)] == pytest.approx(
            [0, 0]
        )
        assert [x.item() for x in psenet.psenet_loss(-right, kernels, valid)] == pytest.approx(
            [1, 1]
        )

    @quick
    @given(seeds)
    def test_nothing_is_learned_where_the_truth_is_unknown(self, seed):
        logits, kernels, valid = random_maps(seed)
        logits.requires_grad_()
        before = [x.item() for x in psenet.psenet_loss(logits, kernels, valid)]
        sum(psenet.psenet_loss(logits, kernels, valid)).backward()
        unknown = (valid == 0)[:, None].expand_as(logits)
        assert not logits.grad[unknown].any() and logits.grad[~unknown].any()
        changed = torch.where(unknown, -logits.detach(), logits.detach())
        flipped = torch.where(unknown, 1 - kernels, kernels)
        assert [x.item() for x in psenet.psenet_loss(changed, flipped, valid)] == before

    def test_a_picture_without_words_has_a_loss_and_no_gradient(self):
        logits, kernels, valid = random_maps(0)
        logits.requires_grad_()
        sum(psenet.psenet_loss(logits, kernels * 0, valid)).backward()
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
        got = psenet.expand_kernels(kernels)
        expected = expand_by_hand(kernels)
        assert got.max() == expected.max()
        pairs = set(zip(got.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})

    def test_touching_words_stay_apart_and_grow_to_their_edges(self):
        right = SQUARE + np.float32([41, 0])
        kernels, _ = draw_kernels([SQUARE, right], [False, False], (40, 110), 0.4)
        labels = psenet.expand_kernels(kernels)
        assert np.array_equal(labels > 0, kernels[0] > 0)
        assert set(labels[10:31, 10:48].ravel()) == {1} and set(labels[10:31, 54:90].ravel()) == {2}

    def test_what_has_no_kernel_is_nothing(self):
        kernels = np.zeros((3, 8, 8), bool)
        kernels[0, :, :3] = kernels[1, :, :2] = True
        assert not psenet.expand_kernels(kernels).any()


class TestOutline:
    @quick
    @given(seeds)
    def test_gives_the_smallest_rectangle_around_what_was_drawn(self, seed):
        quad = random_quad(seed)
        labels = cv2.fillPoly(np.zeros((220, 220), np.int32), [np.rint(quad).astype(int)], 1)
        scores = np.full((220, 220), 0.9)
        found, means = outlines.trace_labels(labels, scores, False, 0.5, 10)
        assert means == [pytest.approx(0.9)] and found[0].shape == (4, 2)
        pixels = shapely.MultiPoint(np.argwhere(labels)[:, ::-1])
        one = shapely.Polygon(found[0])
        assert one.area == pytest.approx(pixels.minimum_rotated_rectangle.area, rel=1e-3)
        assert one.buffer(0.01).contains(pixels)
        assert cv2.contourArea(found[0].astype(np.float32), oriented=True) > 0  # clockwise

    def test_curved_text_keeps_its_shape(self):
        labels = cv2.fillPoly(np.zeros((220, 220), np.int32), [arc(30).astype(int)], 1)
        found, _ = outlines.trace_labels(labels, np.ones((220, 220)), True, 0.5, 10)
        one, other = shapely.Polygon(found[0]), shapely.Polygon(arc(30))
        assert len(found[0]) > 4 and one.intersection(other).area > 0.9 * one.union(other).area

    def test_the_small_and_the_unsure_are_dropped(self):
        labels, scores = np.zeros((40, 60), np.int32), np.full((40, 60), 0.9)
        labels[2:5, 2:5], labels[10:20, 10:30], labels[25:35, 10:30] = 1, 2, 3
        scores[25:35] = 0.4
        found, means = outlines.trace_labels(labels, scores, False, 0.5, 10)
        assert means == [pytest.approx(0.9)] and found[0].min(0).tolist() == [10, 10]


class TestModel:
    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("clip_resnet", {"width": 8, "layers": (1, 1, 1, 1)}),
            ("resnet18", {}),
            ("clip_resnet", {"width": 8, "layers": (1, 1, 1)}),
        ],
    )
    def test_scores_every_pixel_from_three_stages_or_four(self, name, size):
        model = psenet.PSENet(vlpt.build_backbone(name, **size), 16)
        logits = model(torch.randn(2, 3, 64, 96))
        assert logits.shape == (2, 7, 64, 96)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_each_level_hears_of_the_coarser_ones_and_not_of_the_finer(self):
        model, seen = psenet.PSENet(vlpt.build_backbone("resnet18"), 4).eval(), []
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

    def test_starts_from_an_export(self, tmp_path):
        torch.manual_seed(0)
        pretrained = vlpt.VLPT(vlpt.TINY)
        vlpt.export_backbone(pretrained, tmp_path / "b.pt")
        config = DetectorConfig(width=8)
        model = heads.build_detector(config, str(tmp_path / "b.pt"))
        for key, value in pretrained.backbone.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[key], value)
        scratch = heads.build_detector(config)
        first = "backbone.conv1.weight"
        assert not torch.equal(scratch.state_dict()[first], model.state_dict()[first])


class Bright(torch.nn.Module):
    """A model that sees bright pixels as text."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(1, 1, 1)

    def forward(self, images):
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        return (images[:, :1] * 20 - 10).expand(-1, 7, -1, -1)

    find_words = staticmethod(psenet.PSENet.find_words)


class TestDetection:
    def test_is_in_the_pixels_of_the_picture(self):
        image = np.zeros((150, 300, 3), np.uint8)
        image[60:90, 120:240] = 255
        config = DetectorConfig(long_side=200)
        polygons, means = heads.detect_text(Bright(), Image.fromarray(image), config)
        assert len(polygons) == 1 and means[0] > 0.9
        truth = np.array([[120, 60], [239, 89]])
        assert np.abs([polygons[0].min(0), polygons[0].max(0)] - truth).max() <= 1.5
