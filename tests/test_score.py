"""Tests of transfer/score.py: counting as the ICDAR 2015 competition does."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from transfer.score import f_score, match_detections


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
        shares = [
            area_by_hand(clip_by_hand(box, t)) / area_by_hand(box)
            for t, skip in zip(truth, ignored, strict=True)
            if skip
        ]
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
