"""How well detections agree with an annotation.

The score that a single detection has, 0..1, is computed in `transfer.outlines.trace_contours`.

**Detection**, `match_detections` and `f_score`: polygons at an intersection over union of 0.5. This
is the protocol of ICDAR 2015 (https://rrc.cvc.uab.es/?ch=4&com=tasks), which was applied to
polygons by ICDAR 2019 (ArT and LSVT) and as "hmean-iou" by MMOCR, for Total-Text and CTW1500 as
well. Each reader decides which regions are ignored:

- what is marked unreadable: "###" in all data sets, also "#" as the text or the orientation of a
  word of Total-Text, and `illegibility` in LSVT and ArT;
- regions without a transcription;
- words of which at most half is in the picture;
- words with unusable corners, see `transfer.dataset`.

Published results may follow other protocols, and cannot be compared with this one directly:

- Total-Text's own script and PSENet's use DetEval, which also gives credit for a word that is found
  in pieces or together with others. TedEval does, too. Neither is here: no package that is
  maintained has them.
- PSENet's script for CTW1500 knows no ignored regions, and accepts an overlap of exactly 0.5.
- MMOCR and the LSVT competition report the best of several score thresholds, chosen on the test
  set.
- The last two kinds of ignored regions above are words elsewhere, so there are fewer words here.

**Reading included**, `normalized_edit_distance`: 1 - NED of ArT and LSVT, for whoever trains a
spotter from an exported backbone.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import shapely


def to_shape(polygon: np.ndarray) -> shapely.geometry.base.BaseGeometry:
    """A (P, 2) polygon as a shape with a valid area, even if its outline crosses or touches itself.

    What the outline encloses twice, as where the ends of a closed ring of text overlap, counts
    once, and parts without an area do not count.
    """
    return shapely.make_valid(shapely.Polygon(polygon), method="structure", keep_collapsed=False)


def pair_detections(
    truth: Sequence[np.ndarray],
    ignored: Sequence[bool] | np.ndarray,
    detections: Sequence[np.ndarray],
) -> list[tuple[int | None, int | None]]:
    """Pair the words of one picture with its detections.

    A detection is left out if more than half of it lies in an ignored region. The others are paired
    with the words one to one, in the order in which both are listed, where their intersection over
    union is above 0.5.

    Args:
        truth: the polygon of each word or region, (P, 2) pixels with P >= 3.
        ignored: True for each region of `truth` that is not a readable word.
        detections: polygons, (P, 2) pixels with P >= 3.
    Returns: a pair of indices into `truth` and `detections` for each word, with None for a word
        that was not found, then one with None for each detection that is not of a word.
    """
    shapes = [to_shape(polygon) for polygon in truth]
    regions = [shape for shape, skip in zip(shapes, ignored, strict=True) if skip]
    unmatched = {}
    for number, shape in enumerate(map(to_shape, detections)):
        if not any(shape.intersection(region).area > 0.5 * shape.area for region in regions):
            unmatched[number] = shape
    pairs: list[tuple[int | None, int | None]] = []
    for index, (word, skip) in enumerate(zip(shapes, ignored, strict=True)):
        if skip:
            continue
        found = None
        for number, shape in unmatched.items():
            intersection = word.intersection(shape).area
            union = word.area + shape.area - intersection
            if intersection > 0.5 * union:
                found = number
                del unmatched[number]
                break
        pairs.append((index, found))
    return [*pairs, *((None, number) for number in unmatched)]


def match_detections(
    truth: Sequence[np.ndarray],
    ignored: Sequence[bool] | np.ndarray,
    detections: Sequence[np.ndarray],
) -> np.ndarray:
    """Count the matches in one picture, as `pair_detections` finds them.

    Returns: (matched, words, detections), int64; detections in ignored regions do not count.
    """
    pairs = pair_detections(truth, ignored, detections)
    matched = sum(None not in pair for pair in pairs)
    words = sum(word is not None for word, _ in pairs)
    found = sum(number is not None for _, number in pairs)
    return np.array([matched, words, found])


def f_score(counts: np.ndarray) -> dict[str, float]:
    """Compute precision, recall and their harmonic mean, 0..1.

    Args:
        counts: (matched, words, detections), summed over all pictures.
    """
    matched, words, detections = counts.tolist()
    precision = matched / max(1, detections)
    recall = matched / max(1, words)
    f = 2 * precision * recall / (precision + recall) if matched else 0.0
    return {"precision": precision, "recall": recall, "f": f}


def edit_distance(text: str, other: str) -> int:
    """The fewest characters to insert, delete or replace that make one text the other."""
    row = list(range(len(other) + 1))  # from the first k characters of `text` to those of `other`
    for k, char in enumerate(text, 1):
        above = row
        row = [k]
        for j, wanted in enumerate(other, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (char != wanted)))
    return row[-1]


def normalized_edit_distance(pairs: Iterable[tuple[str, str]]) -> float:
    """The mean of edit distance / length of the longer text, 0..1; competitions report 1 minus it.

    As in ICDAR 2019 ArT (https://arxiv.org/abs/1909.07145) and LSVT, there is one pair for each
    word of all pictures, with "" where it was not found, and one for each detection that is not of
    a word, with "" as its word. `pair_detections` tells which these are. The competitions first
    change the texts in ways of their own (lower case, full-width characters, punctuation); that is
    left to the caller.

    Args:
        pairs: the annotated and the found text of each pair, ("", found) and (annotated, "")
            included.
    Returns: 0 if all texts are equal, or if there is none.
    """
    distances = [edit_distance(a, b) / max(len(a), len(b), 1) for a, b in pairs]
    return sum(distances) / max(1, len(distances))
