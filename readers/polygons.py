"""Quads and polygons around words: how they lie in their picture, and in which order."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Polygons = Sequence[np.ndarray]  # of several words: (P, 2) float32 pixels each, P >= 3


@np.errstate(over="ignore")
def to_polygon(numbers: object) -> np.ndarray:
    """Numbers x, y, x, y, ... or text of numbers as (P, 2) float32 pixels. Raises: ValueError."""
    polygon = np.array(numbers, np.float32).reshape(-1, 2)
    if len(polygon) < 3:
        raise ValueError(f"expected 3 points or more, got {len(polygon)}")
    if not np.isfinite(polygon).all():
        raise ValueError("a corner is not a finite number")
    return polygon


def bounding_quads(polygons: Polygons) -> np.ndarray:
    """(words, 4, 2): quads as they are; of polygons with more or fewer points, their boxes."""
    quads = np.empty((len(polygons), 4, 2), np.float32)
    for quad, polygon in zip(quads, polygons, strict=True):
        if len(polygon) == 4:
            quad[:] = polygon
        else:
            (left, top), (right, bottom) = polygon.min(0), polygon.max(0)
            quad[:] = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return quads


# ----------------------------------------------------------------------- inside and outside


def signed_area(polygon: np.ndarray) -> float:
    """The area of (P, 2) points by the shoelace formula, positive if they go clockwise."""
    x, y = polygon.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def clip_polygon(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """The part of a polygon (P, 2) inside a picture, as (Q, 2); Q is 0 if there is none.

    This is Sutherland and Hodgman's algorithm, one edge of the picture after the other. It is
    written here because shapely, which does the same, is only installed for the detector.
    """
    points = polygon.astype(np.float64).tolist()
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        for start, end in zip(points[-1:] + points[:-1], points, strict=True):
            before, after = sign * (start[axis] - limit), sign * (end[axis] - limit)
            if (before >= 0) != (after >= 0):
                part = before / (before - after)
                crossing = [a + part * (b - a) for a, b in zip(start, end, strict=True)]
                crossing[axis] = limit
                kept.append(crossing)
            if after >= 0:
                kept.append(end)
        points = kept
    return np.array(points).reshape(-1, 2)


def around_centre(quad: np.ndarray) -> np.ndarray:
    """The corners of a quad in their order around its centre, so that they do not cross."""
    x, y = (quad - quad.mean(0)).T
    return quad[np.argsort(np.arctan2(y, x), kind="stable")]


def visible_share(polygon: np.ndarray, width: float, height: float) -> float:
    """How much of a polygon's area is inside its picture, 0..1.

    Corners of a quad may be in any order. A polygon without area counts by its centre.
    """
    if ((polygon >= 0) & (polygon <= (width, height))).all():  # nearly all of them
        return 1.0
    outline = around_centre(polygon) if len(polygon) == 4 else polygon
    area = abs(signed_area(outline))
    if area < 1e-6:
        return float(((polygon.mean(0) >= 0) & (polygon.mean(0) <= (width, height))).all())
    return abs(signed_area(clip_polygon(outline, width, height))) / area


class Visible(NamedTuple):
    """Words and regions of a picture, by how much of them is in it."""

    inside: list[bool]  # of each word: more than half is inside, so that the word is readable
    polygons: Polygons  # of these words, as annotated: they may reach beyond the picture
    ignored: Polygons  # regions without a readable word, those of the other words included


def split_visible(polygons: Polygons, ignored: Polygons, width: float, height: float) -> Visible:
    """Tell the words in a picture from those mostly outside it.

    A word of which at most half is inside is no word to learn; the part of it that can be seen is
    text nevertheless, so that it becomes an ignored region. What is wholly outside is left out.
    """
    shares = [visible_share(polygon, width, height) for polygon in polygons]
    kept = [polygon for polygon, share in zip(polygons, shares, strict=True) if share > 0.5]
    regions = [region for region in ignored if visible_share(region, width, height) > 0]
    regions += [
        polygon for polygon, share in zip(polygons, shares, strict=True) if 0 < share <= 0.5
    ]
    return Visible([share > 0.5 for share in shares], kept, regions)


# ----------------------------------------------------------------------- the order of corners


def crossed(quads: np.ndarray) -> np.ndarray:
    """Which of (words, 4, 2) quads have two sides that cross each other, (words,) bool."""
    corners = np.moveaxis(quads.astype(np.float64), 1, 0)

    def turn(a: int, b: int, c: int) -> np.ndarray:
        (x, y), (u, v) = (corners[b] - corners[a]).T, (corners[c] - corners[a]).T
        return np.sign(x * v - y * u)

    def cross(a: int, b: int, c: int, d: int) -> np.ndarray:
        return (turn(a, b, c) * turn(a, b, d) < 0) & (turn(c, d, a) * turn(c, d, b) < 0)

    return cross(0, 1, 2, 3) | cross(1, 2, 3, 0)


def counter_clockwise(quads: np.ndarray) -> np.ndarray:
    """Which of (words, 4, 2) quads go round their word the other way, (words,) bool."""
    turned = np.array([signed_area(quad) < 0 for quad in quads], bool)
    return turned & ~crossed(quads)


def starts_elsewhere(quads: np.ndarray) -> np.ndarray:
    """Which of (words, 4, 2) quads start at another corner than the top left, (words,) bool.

    So does a quad around a word that is turned by more than about 45 degrees.
    """
    distance = quads.sum(-1)
    return (distance[:, 0] > distance.min(1)) & ~crossed(quads)


# ----------------------------------------------------------------------- oriented photographs


def turn_points(points: np.ndarray, orientation: int, width: float, height: float) -> np.ndarray:
    """Points (..., 2) of a photograph's stored pixels, where they are once it is shown.

    Args: orientation: 1..8, from its EXIF data; width, height: of the stored pixels.
    """
    x, y = points[..., 0], points[..., 1]
    moved = {
        1: (x, y),
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }[orientation]
    return np.stack(moved, -1)


def fit_picture(polygons: Polygons, width: float, height: float) -> bool:
    """Whether all corners lie in a picture, or at most 2 % of its longer side beyond its edges."""
    slack = 0.02 * max(width, height)
    points = np.concatenate([np.zeros((0, 2)), *polygons])
    return bool(((points >= -slack) & (points <= (width + slack, height + slack))).all())
