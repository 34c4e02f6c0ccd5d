"""Tests of transfer/score.py: counting as the ICDAR 2015 and 2019 competitions do."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from transfer.score import (
    edit_distance,
    f_score,
    match_detections,
    normalized_edit_distance,
    pair_detections,
    to_shape,
)


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


def common_by_hand(polygon, other):
    """The area that two convex polygons share."""
    return area_by_hand(clip_by_hand(polygon, other))


def match_by_hand(truth, ignored, found, area=area_by_hand, common_area=common_by_hand):
    """The rules of the competition, one by one; the areas are exact."""
    counted = []
    for box in found:
        shares = [
            common_area(box, t) / area(box) for t, skip in zip(truth, ignored, strict=True) if skip
        ]
        assume(all(abs(s - Fraction(1, 2)) > Fraction(1, 10**6) for s in shares))
        if not any(s > Fraction(1, 2) for s in shares):
            counted.append(box)
    words = [t for t, skip in zip(truth, ignored, strict=True) if not skip]
    used, matched = [False] * len(counted), 0
    for word in words:
        for k, box in enumerate(counted):
            common = common_area(word, box)
            iou = common / (area(word) + area(box) - common)
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


@st.composite
def skylines(draw):
    """Unit squares, and the outline of them: concave, and it touches itself where none is high."""
    left, bottom = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    heights = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
    outline = [(left, bottom)]
    for x, height in enumerate(heights, left):
        outline += [(x, bottom + height), (x + 1, bottom + height)]
    outline.append((left + len(heights), bottom))
    squares = {(x, bottom + y) for x, h in enumerate(heights, left) for y in range(h)}
    return frozenset(squares), np.float32(outline)


def count_squares(squares):
    return Fraction(len(squares))


def count_common_squares(squares, others):
    return Fraction(len(squares & others))


def box(x, y, width, height):
    return np.float32([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])


class TestScore:
    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(
        st.lists(st.tuples(parallelograms(), st.booleans()), max_size=6),
        st.lists(parallelograms(), max_size=6),
    )
    @example([([(0, 0), (4, 0), (4, 4), (0, 4)], False)] * 2, [[(0, 0), (4, 0), (4, 4), (0, 4)]])
    def test_equals_slow_counting_with_exact_areas(self, truth, found):
        polygons, ignored = [t for t, _ in truth], [skip for _, skip in truth]
        expected = match_by_hand(polygons, ignored, found)
        as_arrays = [[np.float32(p) for p in group] for group in (polygons, found)]
        assert match_detections(as_arrays[0], ignored, as_arrays[1]).tolist() == expected

    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(
        st.lists(st.tuples(skylines(), st.booleans()), max_size=5),
        st.lists(skylines(), max_size=5),
    )
    def test_outlines_that_are_concave_or_touch_themselves_count_by_their_area(self, truth, found):
        ignored = [skip for _, skip in truth]
        squares = [[shape for (shape, _), _ in truth], [shape for shape, _ in found]]
        expected = match_by_hand(
            squares[0], ignored, squares[1], count_squares, count_common_squares
        )
        outlines = [[line for (_, line), _ in truth], [line for _, line in found]]
        assert match_detections(outlines[0], ignored, outlines[1]).tolist() == expected

    def test_what_an_outline_encloses_twice_counts_once(self):
        ring = [(0, 0), (6, 0), (6, 6), (0, 6), (0, 2), (2, 2), (2, 4), (4, 4), (4, 2), (0, 2)]
        assert to_shape(np.float32(ring)).area == 32  # a ring of text that is closed
        overlapping = [(0, 0), (4, 0), (4, 4), (1, 4), (1, 1), (3, 1), (3, 2), (0, 2)]
        assert to_shape(np.float32(overlapping)).area == 14  # of 4 x 4, two are outside

    def test_an_overlap_of_exactly_a_half_is_too_little(self):
        assert match_detections([box(0, 0, 8, 4)], [False], [box(0, 0, 4, 4)]).tolist() == [0, 1, 1]
        assert match_detections([box(0, 0, 8, 4)], [False], [box(0, 0, 5, 4)]).tolist() == [1, 1, 1]
        assert match_detections([box(0, 0, 4, 4)], [True], [box(0, 0, 8, 4)]).tolist() == [0, 0, 1]
        assert match_detections([box(0, 0, 5, 4)], [True], [box(0, 0, 8, 4)]).tolist() == [0, 0, 0]

    def test_a_word_found_twice_counts_once(self):
        assert match_detections([box(0, 0, 8, 4)], [False], [box(0, 0, 8, 4)] * 2).tolist() == [
            1,
            1,
            2,
        ]

    def test_an_outline_that_crosses_itself_does_not_stop_the_count(self):
        crossed = box(0, 0, 8, 4)[[0, 2, 1, 3]]
        assert match_detections([crossed], [False], [box(0, 0, 8, 4)]).tolist() == [0, 1, 1]

    def test_sums_over_the_set_and_means_are_harmonic(self):
        score = f_score(np.array([3, 6, 4]))
        assert score == {"precision": 0.75, "recall": 0.5, "f": pytest.approx(0.6)}
        assert f_score(np.zeros(3, int))["f"] == 0


class TestPairs:
    def test_each_word_and_each_counted_detection_is_in_one_pair(self):
        truth = [box(0, 0, 8, 4), box(20, 0, 8, 4), box(40, 0, 8, 4)]
        found = [box(60, 0, 8, 4), box(40, 0, 8, 4), box(0, 0, 8, 4), box(20, 0, 8, 4)]
        pairs = pair_detections(truth, [False, True, False], found)
        assert pairs == [(0, 2), (2, 1), (None, 0)]
        assert pair_detections(truth, [False, True, False], []) == [(0, None), (2, None)]

    def test_the_first_detection_that_fits_is_taken(self):
        found = [box(1, 0, 8, 4), box(0, 0, 8, 4)]
        assert pair_detections([box(0, 0, 8, 4)], [False], found) == [(0, 0), (None, 1)]


@cache
def distance_by_definition(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance_by_definition(a[1:], b) + 1,
        distance_by_definition(a, b[1:]) + 1,
        distance_by_definition(a[1:], b[1:]) + (a[0] != b[0]),
    )


class TestNormalizedEditDistance:
    @given(st.text("ab中", max_size=6), st.text("ab中", max_size=6))
    def test_the_edit_distance_is_the_fewest_changes(self, a, b):
        assert edit_distance(a, b) == distance_by_definition(a, b)

    def test_is_the_mean_over_the_length_of_the_longer_text(self):
        assert normalized_edit_distance([("kitten", "sitting")]) == 3 / 7
        assert normalized_edit_distance([("中国", "中国"), ("EXIT", "EXTT")]) == 1 / 8

    def test_a_region_without_a_partner_counts_as_wholly_wrong(self):
        assert (
            normalized_edit_distance([("EXIT", "EXIT"), ("NO", ""), ("", "x"), ("", "y")]) == 0.75
        )

    def test_nothing_to_read_and_nothing_read_is_no_error(self):
        assert normalized_edit_distance([]) == 0 and normalized_edit_distance([("", "")]) == 0

    def test_is_divided_by_words_and_detections_less_the_pairs_of_both(self):
        """As in the figures that the authors of the competitions' servers publish.

        https://github.com/weinman/rrc-evaluation: 2,077 words, 544 detections and 251 pairs of
        both, whose 1 - NED sum up to 191.72, give a 1 - NED of 0.0809.
        """
        pairs = [("a", "a")] * 191 + [("a", "b")] * 60
        pairs += [("a", "")] * (2077 - 251) + [("", "a")] * (544 - 251)
        assert 1 - normalized_edit_distance(pairs) == pytest.approx(191 / 2370)
        assert 191.7195783676198 / 2370 == pytest.approx(0.0808943368639746)
