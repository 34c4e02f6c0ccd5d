"""How well detections agree with an annotation, counted as in the ICDAR 2015 competition."""

from collections.abc import Sequence

import numpy as np
import shapely


def to_shape(polygon: np.ndarray) -> shapely.geometry.base.BaseGeometry:
    """A (P, 2) polygon as a shape with a valid area, even if its outline crosses itself."""
    return shapely.make_valid(shapely.Polygon(polygon))


def match_detections(
    truth: Sequence[np.ndarray],
    ignored: Sequence[bool] | np.ndarray,
    detections: Sequence[np.ndarray],
) -> np.ndarray:
    """Count the matches in one picture.

    A detection counts nowhere if more than half of it lies in an ignored region. The others are
    paired with the words one to one, in the order in which both are listed, where their
    intersection over union is above 0.5.

    Args:
        truth: the polygon of each word or region, (P, 2) pixels.
        ignored: True for each region of `truth` that is not a readable word.
        detections: polygons, (P, 2) pixels.
    Returns: (matched, words, detections), int64.
    """
    words = [to_shape(p) for p, skip in zip(truth, ignored, strict=True) if not skip]
    regions = [to_shape(p) for p, skip in zip(truth, ignored, strict=True) if skip]
    counted = []
    for shape in map(to_shape, detections):
        if not any(shape.intersection(region).area > 0.5 * shape.area for region in regions):
            counted.append(shape)
    unmatched = list(counted)
    for word in words:
        for position, shape in enumerate(unmatched):
            intersection = word.intersection(shape).area
            union = word.area + shape.area - intersection
            if intersection > 0.5 * union:
                del unmatched[position]
                break
    return np.array([len(counted) - len(unmatched), len(words), len(counted)])


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
