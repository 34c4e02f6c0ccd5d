"""DBNet, a text detector with differentiable binarization, on the pyramid of pyramid.py.

A small re-implementation of "Real-time Scene Text Detection with Differentiable Binarization"
(Liao et al., AAAI 2020, arXiv 1911.08947). "The released code" is github.com/MhLiao/DB.

The network predicts for every pixel the probability P that it lies in the shrunken polygon of a
word, and a threshold T, which is large near the outline of a word. In training P is compared with T
by a steep sigmoid, which has a gradient where a comparison has none:

    B = 1 / (1 + exp(-k (P - T)))    with k = 50

    image (B, 3, H, W) --pyramid--> features (B, width, H / 4, W / 4) --> logits (B, 2, H, W)
    training:   polygons --shrink, draw--> truth (B, 3, H, W);  logits, truth -> db_loss
    detection:  P --fixed threshold, connected parts--> shrunken polygons --grow--> polygons

The threshold map is not used to detect. Points are (x, y) in pixels.

The loss is L = w_s L_s + w_b L_b + w_t L_t, for P, B and T. The paper and the code do not agree:

                  L_s                         L_b                         L_t    w_s  w_b  w_t
    paper         BCE, 3 hard negatives to 1  BCE, 3 hard negatives to 1  L1       1    1   10
    released code BCE, 3 hard negatives to 1  Dice                        L1       5    1   10
    MMOCR         as the released code
    here          as the released code

Other differences from the released code: the pyramid is PSENet's; words thinner than 8 pixels are
not ignored; the threshold map is not learned in ignored regions; the score of a detection is the
mean over its pixels, not over its box; a batch without a word teaches P that there is no text.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import cv2
import numpy as np
import shapely
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vlpt
from transfer.outlines import (
    fit_outline,
    offset_polygon,
    shrink_distance,
    shrink_polygon,
    trace_contours,
)
from transfer.psenet import hard_pixels
from transfer.pyramid import MIN_PIXELS, DetectorConfig, PyramidDetector

BRANCH_WIDTH = 64  # channels of each branch of the head; a quarter of a narrow pyramid is too few
STEEPNESS = 50  # k
MIN_THRESHOLD = 0.3  # of the threshold map, far from every outline
MAX_THRESHOLD = 0.7  # on an outline
TEXT_THRESHOLD = 0.3  # P of a text pixel; the paper says 0.2, the released code 0.3
UNCLIP_RATIO = 1.5  # r'
TOLERANCE = 0.5  # pixels by which a curved outline may be simplified


# ------------------------------------------------------------------------------ the training target


def draw_maps(
    polygons: Sequence[np.ndarray], ignored: np.ndarray, shape: tuple[int, int], rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw what is to be predicted in a picture.

    A word with area A and perimeter L is shrunk and dilated by D = A (1 - r^2) / L. Within the
    dilated polygon the threshold falls linearly with the distance to the word's outline, from
    MAX_THRESHOLD to MIN_THRESHOLD at the distance D and beyond. Where the dilated polygons of
    several words overlap, the largest threshold counts.

    Args:
        polygons: of each word or region, (P, 2) pixels.
        ignored: (len(polygons),) bool, True for a region that is neither text nor background.
        shape: (H, W) of the picture.
        rate: r.
    Returns: truth (3, H, W) float32: the shrunken words, 0 or 1; the threshold map; the dilated
        words, 0 or 1. valid (H, W) uint8, 0 where the truth is unknown.
    """
    text = np.zeros(shape, np.uint8)
    nearness = np.zeros(shape, np.float32)  # to an outline: 1 on it, 0 at the distance D
    dilated = np.zeros(shape, np.uint8)
    valid = np.ones(shape, np.uint8)
    for polygon, skip in zip(polygons, ignored, strict=True):
        if skip:
            fill(valid, [polygon], 0)
            continue
        distance = shrink_distance(polygon, rate)
        if not distance:
            continue
        for part in shrink_polygon(polygon, rate):
            fill(text, [part], 1)
        grown = np.zeros(shape, np.uint8)
        fill(grown, offset_polygon(polygon, distance), 1)  # at once, so that a hole stays open
        rows, columns = grown.nonzero()
        gaps = distance_to_outline(columns, rows, polygon)
        near = np.maximum(1 - gaps / distance, 0)
        nearness[rows, columns] = np.maximum(nearness[rows, columns], near)
        dilated |= grown
    threshold = MIN_THRESHOLD + (MAX_THRESHOLD - MIN_THRESHOLD) * nearness
    truth = np.stack([text, threshold, dilated]).astype(np.float32)
    return truth, np.where(text, 1, valid).astype(np.uint8)


def distance_to_outline(x: np.ndarray, y: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """The distance of each point (x, y) to the nearest point of a polygon's sides.

    Shapely has this too, but takes over ten times as long for the many pixels of a word.
    """
    nearest = np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        dx, dy = x1 - x0, y1 - y0
        share = ((x - x0) * dx + (y - y0) * dy) / max(dx**2 + dy**2, 1e-9)
        share = share.clip(0, 1)  # of the side, where it is nearest
        nearest = np.minimum(nearest, np.hypot(x - x0 - share * dx, y - y0 - share * dy))
    return nearest


def fill(canvas: np.ndarray, parts: Sequence[np.ndarray], value: int) -> None:
    """Fill polygons, (P, 2) pixels each; where two of them overlap there is a hole."""
    cv2.fillPoly(canvas, [np.rint(part).astype(np.int32) for part in parts], value)


# ---------------------------------------------------------------------------------------- the loss


def db_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of the loss, each over all pixels of the batch that count.

    Args:
        logits: (B, 2, H, W), of the probability P and of the threshold T.
        truth: (B, 3, H, W): text, threshold and dilated words, see `draw_maps`.
        valid: (B, H, W), 0 where nothing counts.
    Returns: scalars:
        L_s, the mean cross-entropy of P over the text pixels and three times as many others, namely
            those with the largest P. In a batch without text it is the mean over all valid pixels.
        L_b = 1 - 2 sum(B G) / (sum(B) + sum(G)), 0..1, where G is the text. In a batch without text
            it is 1 and has no gradient.
        L_t, the mean of |T - threshold| over the dilated words; 0 where there are none.
    """
    text, threshold, dilated = truth.to(logits.dtype).unbind(1)  # (B, H, W) each
    valid = valid.bool()
    P, T = logits.sigmoid().unbind(1)
    B = (STEEPNESS * (P - T)).sigmoid()

    entropy = F.binary_cross_entropy_with_logits(logits[:, 0], text, reduction="none")
    one_picture = (1, -1, valid.shape[2])  # the hard pixels are those of the batch
    hard = hard_pixels(
        P.reshape(one_picture), text.reshape(one_picture), valid.reshape(one_picture)
    )
    L_s = mean_where(entropy, hard.view_as(valid))

    overlap = (B * text * valid).sum()
    L_b = 1 - 2 * overlap / ((B * valid).sum() + (text * valid).sum()).clamp(min=1e-3)

    L_t = mean_where((T - threshold).abs(), dilated.bool() & valid)
    return L_s, L_b, L_t


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of some values, 0 if there are none. `where` is bool, in the shape of values."""
    return (values * where).sum() / where.sum().clamp(min=1)


# ------------------------------------------------------------------------- from scores to polygons


def unclip(polygon: np.ndarray, curved: bool) -> np.ndarray | None:
    """Grow a shrunken polygon by D' = A' r' / L', with its area A' and perimeter L'.

    This undoes the shrinking only approximately. Of a rectangle, the result has the overlap (IoU)
    0.97 with the original if it is a square, 0.68 if it is 5 times as long as high, 0.56 at 10
    times and 0.48 at 20 times.

    Args:
        polygon: (P, 2) pixels, with an area.
        curved: whether to round the corners; otherwise the result is a rectangle.
    Returns: (Q, 2) float32, clockwise as one sees it; None if its few points have no area, as may
        happen where a part is one pixel wide.
    """
    shape = shapely.Polygon(polygon)
    parts = offset_polygon(polygon, shape.area * UNCLIP_RATIO / shape.length)
    return fit_outline(max(parts, key=cv2.contourArea), curved, TOLERANCE)


def find_words(
    probability: np.ndarray, curved: bool, min_score: float
) -> tuple[list[np.ndarray], list[float]]:
    """Turn the probability map of a picture into polygons.

    Args:
        probability: (H, W), 0..1.
        curved: whether to follow the outline; otherwise the smallest rectangle around it is taken.
        min_score: a part with a smaller mean probability is dropped.
    Returns: (P, 2) float32 polygons, clockwise as one sees them; the mean probability of each one's
        text pixels.
    """
    text = (probability > TEXT_THRESHOLD).astype(np.uint8)
    labels = cv2.connectedComponents(text, connectivity=8)[1]
    polygons = []
    means = []
    for contour, mean in trace_contours(labels, probability, min_score, MIN_PIXELS):
        shrunken = fit_outline(contour, curved, TOLERANCE)
        outline = None if shrunken is None else unclip(shrunken, curved)
        if outline is not None:
            polygons.append(outline)
            means.append(mean)
    return polygons, means


# ------------------------------------------------------------------------------------- the network


class Branch(nn.Module):
    """Predicts one map at the picture's size by two transposed convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.Conv2d(width, BRANCH_WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(BRANCH_WIDTH),
            nn.ReLU(),
            nn.ConvTranspose2d(BRANCH_WIDTH, BRANCH_WIDTH, 2, stride=2),
            nn.BatchNorm2d(BRANCH_WIDTH),
            nn.ReLU(),
        )
        self.out = nn.ConvTranspose2d(BRANCH_WIDTH, 1, 2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, H / 4, W / 4) -> logits (B, 1, H, W)."""
        grown = self.grow(features)  # (B, BRANCH_WIDTH, H / 2, W / 2)
        # float32: bfloat16 is too coarse for scores, see `VLPT.decode`.
        with vlpt.autocast_off(grown):
            return self.out(grown.to(self.out.weight.dtype))


class DBNet(PyramidDetector):
    """A feature pyramid and DB's head, a branch for the probability and one for the threshold."""

    loss_weights: ClassVar[Mapping[str, float]] = {"probability": 5, "binary": 1, "threshold": 10}
    usual_min_score: ClassVar[float] = 0.5  # released code: 0.5 to 0.7; MMOCR: 0.3

    def __init__(self, backbone: vlpt.Backbone, width: int) -> None:
        super().__init__(backbone, width)
        self.probability = Branch(width)
        self.threshold = Branch(width)

    def forward(self, images: Tensor) -> Tensor:
        """Predict the probability and the threshold.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of 32.
        Returns: logits (B, 2, H, W).
        """
        features = self.features(images)
        return torch.cat([self.probability(features), self.threshold(features)], 1)

    @staticmethod
    def draw_truth(
        polygons: Sequence[np.ndarray],
        ignored: np.ndarray,
        shape: tuple[int, int],
        config: DetectorConfig,
    ) -> tuple[np.ndarray, np.ndarray]:
        return draw_maps(polygons, ignored, shape, config.smallest_kernel)

    @staticmethod
    def loss_terms(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return db_loss(logits, truth, valid)

    @staticmethod
    def find_words(
        scores: np.ndarray, config: DetectorConfig
    ) -> tuple[list[np.ndarray], list[float]]:
        return find_words(scores[0], config.curved, config.min_score)
