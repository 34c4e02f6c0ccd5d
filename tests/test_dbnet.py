"""Tests of transfer/dbnet.py: training targets, loss, network, and from scores to polygons."""

import math

import cv2
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlpt
from tests.test_psenet import DUMBBELL, SQUARE, arc, hard_by_hand, random_quad
from transfer import dbnet, heads
from transfer.dbnet import db_loss, draw_maps, find_words
from transfer.outlines import shrink_distance, shrink_polygon
from transfer.pyramid import DetectorConfig

seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, derandomize=True, max_examples=40)
SYMMETRIES = {  # of a picture (..., H, W), and of points (..., 2) in a square picture of side 220
    "left and right": (lambda maps: maps[..., ::-1], lambda p: p * [-1, 1] + [219, 0]),
    "up and down": (lambda maps: maps[..., ::-1, :], lambda p: p * [1, -1] + [0, 219]),
    "rows and columns": (lambda maps: maps.swapaxes(-1, -2), lambda p: p[..., ::-1]),
}


def draw(*polygons, shape=(220, 220), ignored=None):
    ignored = [False] * len(polygons) if ignored is None else ignored
    return draw_maps([np.float32(p) for p in polygons], np.array(ignored, bool), shape, 0.4)


def rectangle(width, height, x=20, y=20):
    return np.float32([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


def overlap(one, other):
    """The intersection over union of two polygons."""
    one, other = (shapely.make_valid(shapely.Polygon(p)) for p in (one, other))
    return one.intersection(other).area / one.union(other).area


class TestTargets:
    """D = A (1 - r^2) / L; the threshold is 0.7 - 0.4 min(1, distance to the outline / D)."""

    def test_a_rectangle_by_hand(self):
        (text, threshold, dilated), valid = draw(SQUARE)  # D = 40 * 20 * 0.84 / 120 = 5.6
        assert text.sum() == (44 - 16 + 1) * (24 - 16 + 1) and text[16:25, 16:45].all()
        assert threshold[20, 10] == pytest.approx(0.7)
        assert threshold[20, 12] == pytest.approx(0.7 - 0.4 * 2 / 5.6)
        assert threshold[20, 8] == pytest.approx(0.7 - 0.4 * 2 / 5.6)
        assert threshold[20, [2, 20]] == pytest.approx(0.3)
        assert dilated[20, [4, 20, 56]].all() and not dilated[20, [3, 57]].any()
        assert valid.all()

    @quick
    @given(seeds)
    def test_equal_a_slow_drawing(self, seed):
        polygons = [random_quad(seed), random_quad(seed + 1), arc()]
        (text, threshold, dilated), _ = draw(*polygons)
        rng = np.random.default_rng(seed)
        for x, y in rng.integers(0, 220, (60, 2)).tolist():
            point, expected, sure = shapely.Point(x, y), 0.3, True
            is_text = is_dilated = False
            for polygon in polygons:
                shape = shapely.Polygon(polygon)
                d = shape.area * (1 - 0.4**2) / shape.length
                gap = shape.exterior.distance(point)
                inside = shape.contains(point)
                is_text |= inside and gap > d
                is_dilated |= inside or gap < d
                sure &= abs(gap - d) > 1.5  # an edge may be off by a rounded corner
                expected = max(expected, 0.7 - 0.4 * min(1, gap / d))
            if sure:
                assert (text[y, x], dilated[y, x]) == (is_text, is_dilated)
                assert threshold[y, x] == pytest.approx(expected, abs=1e-6)

    @quick
    @given(seeds)
    def test_the_distance_to_an_outline_is_that_of_shapely(self, seed):
        quad = random_quad(seed)
        x, y = np.random.default_rng(seed).uniform(0, 220, (2, 50))
        expected = shapely.distance(shapely.LinearRing(quad), shapely.points(x, y))
        assert dbnet.distance_to_outline(x, y, quad) == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize("name", SYMMETRIES)
    def test_of_a_flipped_picture_are_flipped(self, name):
        flip, move = SYMMETRIES[name]
        polygons = [rectangle(80, 30), rectangle(20, 60, 150, 90)]
        ignored = [False, False, True]
        polygons.append(rectangle(40, 40, 30, 100))
        truth, valid = draw(*polygons, ignored=ignored)
        other, other_valid = draw(*map(move, polygons), ignored=ignored)
        assert np.abs(other - flip(truth)).max() < 1e-6
        assert np.array_equal(other_valid, flip(valid))

    @quick
    @given(seeds, st.sampled_from(sorted(SYMMETRIES)))
    def test_of_a_flipped_slanted_word_differ_at_its_edges_alone(self, seed, name):
        flip, move = SYMMETRIES[name]
        quad = random_quad(seed)
        truth, _ = draw(quad)
        other, _ = draw(move(quad))
        perimeter = shapely.Polygon(quad).length
        both = (truth[2] * flip(other)[2]) > 0
        assert np.abs(truth[1] - flip(other)[1])[both].max(initial=0) < 1e-3
        assert (truth[0] != flip(other)[0]).sum() <= perimeter
        assert (truth[2] != flip(other)[2]).sum() <= 2 * perimeter

    def test_the_direction_of_the_outline_does_not_matter(self):
        assert np.array_equal(draw(arc())[0], draw(arc()[::-1])[0])

    def test_a_word_inside_another_one_keeps_both_thresholds(self):
        outer, inner = rectangle(160, 160), rectangle(20, 20, 90, 90)
        (text, threshold, dilated), _ = draw(outer, inner)
        alone = [draw(outer)[0], draw(inner)[0]]
        assert np.array_equal(text, np.maximum(alone[0][0], alone[1][0]))
        assert np.array_equal(threshold, np.maximum(alone[0][1], alone[1][1]))
        assert threshold[[20, 90], 100] == pytest.approx(0.7)  # on both outlines
        assert dilated[100, 100] == 1

    def test_words_that_cross_do_not_depend_on_their_order(self):
        one, other = rectangle(120, 30, 20, 60), rectangle(30, 120, 60, 20)
        assert np.array_equal(draw(one, other)[0], draw(other, one)[0])
        assert draw(one, other)[0][1, 60, 75] == pytest.approx(0.7)  # the outline of `one`

    def test_a_small_word_has_text(self):
        (text, _, dilated), _ = draw(rectangle(6, 4))
        assert 1 <= text.sum() < 35 < dilated.sum()

    def test_a_word_without_an_area_is_not_drawn(self):
        (text, threshold, dilated), valid = draw([[5, 5]] * 4, [[5, 5], [9, 5], [7, 5]])
        assert not text.any() and not dilated.any() and valid.all()
        assert (threshold == np.float32(0.3)).all()

    def test_a_narrow_waist_falls_into_two_texts(self):
        (text, _, dilated), _ = draw(DUMBBELL + 20)
        parts = [cv2.connectedComponents(m.astype(np.uint8))[0] - 1 for m in (text, dilated)]
        assert parts == [2, 1]

    def test_a_ring_that_closes_when_it_is_dilated_keeps_its_hole(self):
        angles = np.linspace(0.05, 2 * np.pi - 0.05, 40)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        ring = np.float32([*(90 * circle), *(70 * circle[::-1])])
        dilated = draw(ring + 110)[0][2]
        assert dilated[110, 190] == 1 and dilated[110, 30] == 1 and dilated[110, 110] == 0

    def test_where_the_truth_is_unknown(self):
        region = SQUARE + np.float32([30, 0])
        (text, _, _), valid = draw(SQUARE, region, ignored=[False, True])
        assert text[20, 75] == 0 and valid[20, 75] == 0  # in the region
        assert text[20, 42] == 1 and valid[20, 42] == 1  # in a word's text as well
        assert valid[5].all()


def random_maps(seed, B=2, side=5, share=0.3):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, 2, side, side, generator=rng, dtype=torch.float64)
    text, dilated = (torch.rand(2, B, side, side, generator=rng) < share).double()
    threshold = 0.3 + 0.4 * torch.rand(B, side, side, generator=rng).double()
    valid = (torch.rand(B, side, side, generator=rng) < 0.8).to(torch.uint8)
    return logits, torch.stack([text, threshold, dilated], 1), valid


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


class TestLoss:
    """L = 5 L_s + L_b + 10 L_t: cross-entropy of P, dice of B = sigmoid(50 (P - T)), L1 of T."""

    @quick
    @given(seeds, st.integers(1, 3), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.3]))
    def test_equals_loops(self, seed, B, side, share):
        logits, truth, valid = random_maps(seed, B, side, share)
        P, T = ([sigmoid(x) for x in logits[:, i].flatten().tolist()] for i in (0, 1))
        text, threshold, dilated = (truth[:, i].flatten().tolist() for i in range(3))
        where = valid.flatten().tolist()
        hard = hard_by_hand(P, text, where)
        if not any(g and v for g, v in zip(text, where, strict=True)):
            hard = where
        entropy = gaps = count = words = top = left = right = 0.0
        for k in range(len(P)):
            binary = sigmoid(50 * (P[k] - T[k]))
            if hard[k]:
                entropy -= math.log(P[k] if text[k] else 1 - P[k])
                count += 1
            if where[k]:
                top += binary * text[k]
                left += binary
                right += text[k]
            if where[k] and dilated[k]:
                gaps += abs(T[k] - threshold[k])
                words += 1
        expected = (
            entropy / max(count, 1),
            1 - 2 * top / max(left + right, 1e-3),
            gaps / max(words, 1),
        )
        assert [x.item() for x in db_loss(logits, truth, valid)] == pytest.approx(expected)

    def test_is_near_zero_for_the_truth_and_large_for_its_opposite(self):
        drawn, valid = draw(SQUARE)
        truth, valid = torch.from_numpy(drawn)[None].double(), torch.from_numpy(valid)[None]
        right = torch.stack([(truth[:, 0] * 2 - 1) * 50, truth[:, 1].logit()], 1)
        assert [x.item() for x in db_loss(right, truth, valid)] == pytest.approx(
            [0, 0, 0], abs=1e-4
        )
        L_s, L_b, L_t = db_loss(-right, truth, valid)
        assert L_s > 40 and L_b == pytest.approx(1, abs=1e-4) and L_t > 0.2

    def test_weighs_its_terms_as_the_released_code(self):
        assert dict(dbnet.DBNet.loss_weights) == {"probability": 5, "binary": 1, "threshold": 10}

    @pytest.mark.parametrize(("P", "T"), [(0.5, 0.5), (0.8, 0.3), (0.31, 0.3), (0.0, 1.0)])
    def test_the_binary_map_is_the_published_function(self, P, T):
        logits = torch.tensor([P, T], dtype=torch.float64).logit().view(1, 2, 1, 1)
        ones = torch.ones(1, 3, 1, 1)
        binary = 1 / (1 + math.exp(-50 * (P - T)))
        expected = 1 - 2 * binary / (binary + 1)
        assert db_loss(logits, ones, ones[:, 0])[1].item() == pytest.approx(expected)

    @quick
    @given(seeds)
    def test_nothing_is_learned_where_the_truth_is_unknown(self, seed):
        logits, truth, valid = random_maps(seed)
        logits.requires_grad_()
        before = [x.item() for x in db_loss(logits, truth, valid)]
        sum(db_loss(logits, truth, valid)).backward()
        unknown = (valid == 0)[:, None]
        assert not logits.grad[unknown.expand_as(logits)].any()
        assert logits.grad[~unknown.expand_as(logits)].any()
        changed = torch.where(unknown, -logits.detach(), logits.detach())
        flipped = torch.where(unknown, 1 - truth, truth)
        assert [x.item() for x in db_loss(changed, flipped, valid)] == before

    def test_the_threshold_learns_from_dilated_words_alone(self):
        logits, truth, valid = random_maps(0, side=9)
        logits.requires_grad_()
        db_loss(logits, truth, valid)[2].backward()
        assert not logits.grad[:, 0].any()
        assert torch.equal(logits.grad[:, 1] != 0, (truth[:, 2] > 0) & (valid > 0))

    def test_a_batch_without_words_teaches_that_there_is_no_text(self):
        logits, truth, valid = random_maps(0)
        logits.requires_grad_()
        terms = db_loss(logits, truth * 0, valid)
        assert terms[1] == 1 and terms[2] == 0
        sum(terms).backward()
        assert (logits.grad[:, 0][valid > 0] > 0).all() and not logits.grad[:, 1].any()

    def test_a_batch_in_which_nothing_is_known_has_no_gradient(self):
        logits, truth, valid = random_maps(0)
        logits.requires_grad_()
        sum(db_loss(logits, truth, valid * 0)).backward()
        assert torch.isfinite(logits.grad).all() and not logits.grad.any()

    @pytest.mark.parametrize("name", SYMMETRIES)
    def test_of_a_flipped_batch_is_the_same(self, name):
        flip, _ = SYMMETRIES[name]
        maps = random_maps(1, side=8)
        flipped = [torch.from_numpy(flip(x.numpy()).copy()) for x in maps]
        one, other = (torch.stack(db_loss(*x)) for x in (maps, flipped))
        assert torch.allclose(one, other)


class TestDetection:
    """A perfect map gives the polygon back, as far as D' = 1.5 A' / L' undoes the shrinking."""

    @pytest.mark.parametrize(
        ("length", "bound"), [(1, 0.96), (2, 0.91), (5, 0.67), (10, 0.55), (20, 0.48)]
    )
    def test_growing_undoes_the_shrinking_of_a_rectangle_roughly(self, length, bound):
        word = rectangle(100 * length, 100)
        (shrunken,) = shrink_polygon(word, 0.4)
        assert bound < overlap(dbnet.unclip(shrunken, False), word) < bound + 0.02

    def test_grows_by_the_published_distance(self):
        grown = dbnet.unclip(rectangle(40, 20), False)  # D' = 40 * 20 * 1.5 / 120 = 10
        assert grown.min(0) == pytest.approx([10, 10]) and grown.max(0) == pytest.approx([70, 50])
        rounded = dbnet.unclip(rectangle(40, 20), True)
        circle = shapely.Polygon(rectangle(40, 20)).buffer(10)
        assert overlap(rounded, circle.exterior.coords) > 0.97 and len(rounded) < 30

    @quick
    @given(seeds, st.booleans())
    def test_perfect_maps_give_back_the_polygon(self, seed, curved):
        """IoU above 0.55 for a word of at most 4 to 1, with at least 10 pixels of height."""
        quad = random_quad(seed)
        sides = cv2.minAreaRect(quad)[1]
        if min(sides) < 10 or max(sides) > 4 * min(sides):
            return
        probability = draw(quad)[0][0]
        (found,), (mean,) = find_words(probability, curved, 0.7)
        assert overlap(found, quad) > 0.55 and mean == 1
        assert cv2.contourArea(found, oriented=True) > 0  # clockwise
        assert found.dtype == np.float32 and (curved or len(found) == 4)

    def test_perfect_maps_give_back_a_curved_word(self):
        (found,), _ = find_words(draw(arc(30))[0][0], True, 0.7)
        assert overlap(found, arc(30)) > 0.55 and 8 < len(found) < 60

    def test_touching_words_stay_apart(self):
        words = [SQUARE + 20, SQUARE + np.float32([61, 20])]
        found, _ = find_words(draw(*words)[0][0], False, 0.7)
        assert len(found) == 2
        assert all(overlap(one, other) > 0.8 for one, other in zip(found, words, strict=True))

    @quick
    @given(seeds, st.booleans(), st.sampled_from(sorted(SYMMETRIES)))
    def test_of_a_flipped_map_is_flipped(self, seed, curved, name):
        flip, move = SYMMETRIES[name]
        probability = draw(random_quad(seed))[0][0]
        (one,), (mean,) = find_words(probability, curved, 0.7)
        (other,), (other_mean,) = find_words(np.ascontiguousarray(flip(probability)), curved, 0.7)
        assert mean == other_mean
        bound = 0.9 if curved else 0.99  # where several simplifications are equally near
        assert overlap(move(one), other) > bound

    @quick
    @given(seeds, st.booleans())
    def test_any_map_gives_valid_polygons(self, seed, curved):
        rng = np.random.default_rng(seed)
        noise = cv2.GaussianBlur(rng.random((60, 60)), (0, 0), rng.uniform(0.6, 3))
        noise = (noise - noise.min()) / (noise.max() - noise.min())
        polygons, means = find_words(noise, curved, 0.0)
        assert len(polygons) == len(means)
        for polygon, mean in zip(polygons, means, strict=True):
            assert len(polygon) > 2 and cv2.contourArea(polygon, oriented=True) > 0
            assert 0.3 < mean <= 1

    @pytest.mark.parametrize("curved", [False, True])
    def test_lines_of_one_pixel_give_valid_polygons(self, curved):
        for seed in range(100):
            lines = np.zeros((48, 48))
            for x, y, *end in np.random.default_rng(seed).integers(0, 48, (6, 4)).tolist():
                cv2.line(lines, (x, y), end, 0.9)
            polygons, means = find_words(lines, curved, 0.0)
            assert len(polygons) == len(means)
            assert all(cv2.contourArea(polygon, oriented=True) > 0 for polygon in polygons)

    def test_the_small_and_the_unsure_are_dropped(self):
        probability = np.zeros((60, 60))
        probability[2:5, 2:5], probability[10:20, 10:30] = 0.9, 0.9
        probability[30:40, 10:30] = 0.5
        probability[50:51, 10:40] = 0.9  # a line has no area
        found, means = find_words(probability, False, 0.7)
        assert len(found) == 1 and means == [pytest.approx(0.9)]
        assert len(find_words(probability, False, 0.4)[0]) == 2
        assert find_words(probability * 0, False, 0.7) == ([], [])


class Bright(dbnet.DBNet):
    """A model that sees the bright pixels as text, shrunken as they are."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        return (images[:, :1] * 20 - 10).expand(-1, 2, -1, -1)


class TestModel:
    @pytest.mark.parametrize(
        ("name", "size", "width"),
        [
            ("clip_resnet", {"width": 8, "layers": (1, 1, 1, 1)}, 16),
            ("resnet18", {}, 1),
            ("clip_resnet", {"width": 8, "layers": (1, 1, 1)}, 16),
        ],
    )
    def test_scores_every_pixel_from_three_stages_or_four(self, name, size, width):
        model = dbnet.DBNet(vlpt.build_backbone(name, **size), width)
        logits = model(torch.randn(2, 3, 64, 96))
        assert logits.shape == (2, 2, 64, 96)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_the_two_maps_have_heads_of_their_own(self):
        model = dbnet.DBNet(vlpt.build_backbone("resnet18"), 4)
        heads_of_maps = (model.probability, model.threshold)
        for channel, (own, other) in enumerate([heads_of_maps, heads_of_maps[::-1]]):
            model.zero_grad()
            model(torch.randn(2, 3, 64, 64))[:, channel].sum().backward()
            assert all(p.grad.any() for p in own.out.parameters())
            assert not any(p.grad.any() for p in other.parameters())

    @pytest.mark.parametrize("head", sorted(heads.HEADS))
    def test_scores_and_losses_are_float32_under_autocast(self, head):
        config = DetectorConfig(width=8, head=head)
        model = heads.build_detector(config)
        truth, valid = model.draw_truth([SQUARE], np.zeros(1, bool), (64, 64), config)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.randn(1, 3, 64, 64))
        terms = model.loss_terms(logits, torch.from_numpy(truth)[None], torch.tensor(valid[None]))
        assert logits.dtype == torch.float32
        assert {term.dtype for term in terms} == {torch.float32}
        assert len(terms) == len(model.loss_weights)

    def test_finds_text_in_the_pixels_of_the_picture(self):
        image = np.zeros((150, 300, 3), np.uint8)
        image[60:90, 120:240] = 255
        config = DetectorConfig(long_side=200, head="db")
        (polygon,), means = heads.detect_text(Bright(), Image.fromarray(image), config)
        grow = shrink_distance(rectangle(119, 29), 0) * 1.5  # at r = 0 it is A / P
        assert polygon.min(0) == pytest.approx([120 - grow, 60 - grow], abs=2)
        assert polygon.max(0) == pytest.approx([239 + grow, 89 + grow], abs=2)
        assert means[0] > 0.9
