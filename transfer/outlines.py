"""Polygons of words: moving their sides, and tracing them around pixels.

Points are (x, y) in pixels.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import pyclipper
import shapely
from scipy import ndimage

# --------------------------------------------------------------------------------- moving the sides


def offset_polygon(polygon: np.ndarray, distance: float) -> list[np.ndarray]:
    """Move every side of a polygon outwards, or inwards by a negative distance (Vatti clipping).

    Args:
        polygon: (P, 2) pixels.
        distance: pixels.
    Returns: the parts that are left, (Q, 2) float32 pixels each. The outline of a hole is a part of
        its own.
    """
    precision = 1000  # pyclipper takes whole numbers
    offset = pyclipper.PyclipperOffset()
    points = np.rint(polygon * precision).astype(np.int64).tolist()
    offset.AddPath(points, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    parts = offset.Execute(precision * distance)
    return [np.array(part, np.float32) / precision for part in parts]


def shrink_distance(polygon: np.ndarray, rate: float) -> float:
    """The distance d = A (1 - r^2) / P by which the sides of a polygon move inwards.

    Args:
        polygon: (P, 2) pixels, with area A and perimeter P.
        rate: r, above 0 and at most 1.
    Returns: d, pixels; 0 for a polygon without an area.
    """
    shape = shapely.Polygon(polygon)
    return shape.area * (1 - rate**2) / shape.length if shape.area else 0.0


def shrink_polygon(polygon: np.ndarray, rate: float) -> list[np.ndarray]:
    """Move every side of a polygon inwards by d = A (1 - r^2) / P, see `shrink_distance`.

    Args:
        polygon: (P, 2) pixels.
        rate: r, above 0 and at most 1. At 1 the polygon stays as it is.
    Returns: the parts that are left, (Q, 2) float32 pixels each. A polygon with a narrow waist
        falls into several parts; a polygon without an area has none.
    """
    if rate == 1:
        return [polygon]
    distance = shrink_distance(polygon, rate)
    return offset_polygon(polygon, -distance) if distance else []


def kernel_is_too_thin(polygon: np.ndarray, smallest: float) -> bool:
    """Whether the smallest kernel of a word is nowhere a full pixel thick, or missing."""
    parts = shrink_polygon(polygon, smallest)
    return all(shapely.Polygon(part).buffer(-0.5).is_empty for part in parts)


# ------------------------------------------------------------------------------------------ tracing


def fit_outline(contour: np.ndarray, curved: bool, tolerance: float) -> np.ndarray | None:
    """Describe a contour by few points.

    Args:
        contour: (P, 2) pixels.
        curved: whether to follow it; otherwise the smallest rectangle around it is taken.
        tolerance: how far a curved outline may be from the contour, pixels.
    Returns: (Q, 2) float32, clockwise as one sees it; None if it has no area.
    """
    if curved:
        polygon = cv2.approxPolyDP(contour, tolerance, True)[:, 0]
    else:
        polygon = cv2.boxPoints(cv2.minAreaRect(contour))
    if len(polygon) < 3 or not cv2.contourArea(polygon):
        return None
    is_clockwise = cv2.contourArea(polygon, oriented=True) > 0
    return np.float32(polygon if is_clockwise else polygon[::-1])


def trace_contours(
    labels: np.ndarray, scores: np.ndarray, min_score: float, min_pixels: int
) -> Iterator[tuple[np.ndarray, float]]:
    """Trace the outer edge of each label.

    Args:
        labels: (H, W), 0 for no word.
        scores: (H, W), 0..1.
        min_score: a part with a smaller mean score is dropped.
        min_pixels: a smaller part is dropped.
    Yields: (P, 2) int32, the pixels along an edge; the mean score of the part.
    """
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == label
        mean = float(scores[rows, columns][inside].mean())
        if inside.sum() < min_pixels or mean < min_score:
            continue
        mask = np.pad(inside.astype(np.uint8), 1)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        corner = np.array([columns.start - 1, rows.start - 1], np.int32)
        yield max(found, key=cv2.contourArea)[:, 0] + corner, mean


def trace_labels(
    labels: np.ndarray, scores: np.ndarray, curved: bool, min_score: float, min_pixels: int
) -> tuple[list[np.ndarray], list[float]]:
    """Turn labels into polygons.

    Args:
        curved: whether to follow the outline; otherwise the smallest rectangle around it is taken.
        labels, scores, min_score, min_pixels: as for `trace_contours`.
    Returns: (P, 2) float32 polygons, clockwise as one sees them; the mean score in each.
    """
    polygons = []
    means = []
    for contour, mean in trace_contours(labels, scores, min_score, min_pixels):
        polygon = fit_outline(contour, curved, 0.01 * cv2.arcLength(contour, True))
        if polygon is not None:
            polygons.append(polygon)
            means.append(mean)
    return polygons, means
