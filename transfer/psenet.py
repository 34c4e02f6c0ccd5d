"""PSENet, a text detector, on a backbone of vlpt.py.

A small re-implementation of "Shape Robust Text Detection with Progressive Scale Expansion Network"
(Wang et al., CVPR 2019, arXiv 1903.12473). Section and equation numbers refer to that paper.

A feature pyramid predicts for every pixel whether it lies inside the polygon of a word, and whether
it lies inside each of n - 1 shrunken copies of that polygon, which are called kernels. The smallest
kernels are apart even where words touch. So words are told apart there, and each one then grows
back to its full size, kernel by kernel.

    image (B, 3, H, W) --pyramid--> features (B, width, H / 4, W / 4) --> logits (B, n, H, W)
    training:   polygons --shrink, draw--> kernels (B, n, H, W);  logits, kernels -> psenet_loss
    detection:  logits --threshold, expand--> labels (H, W) --trace--> polygons

There are n = 7 maps. They are numbered from the whole word, 0, to the smallest kernel, n - 1. The
paper numbers them the other way round, from 1, the smallest kernel, to n. Points are (x, y) in
pixels.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vlpt
from transfer.outlines import shrink_polygon, trace_labels
from transfer.pyramid import MIN_PIXELS, DetectorConfig, PyramidDetector

NUM_KERNELS = 7  # n, the whole word included

# ------------------------------------------------------------------------------ the training target


def draw_kernels(
    polygons: Sequence[np.ndarray], ignored: np.ndarray, shape: tuple[int, int], smallest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw what is to be predicted in a picture.

    Kernel i of 0 .. n - 1 has the shrinking rate r_i = 1 - (1 - m) i / (n - 1), where m is the
    smallest rate (section 3.4). Each kernel lies within the one before it.

    Args:
        polygons: of each word or region, (P, 2) pixels.
        ignored: (len(polygons),) bool, True for a region that is neither text nor background.
        shape: (H, W) of the picture.
        smallest: m.
    Returns: kernels (n, H, W) uint8, 0 or 1; valid (H, W) uint8, 0 where the truth is unknown.
    """
    kernels = np.zeros((NUM_KERNELS, *shape), np.uint8)
    valid = np.ones(shape, np.uint8)
    for polygon, skip in zip(polygons, ignored, strict=True):
        if skip:
            cv2.fillPoly(valid, [np.rint(polygon).astype(np.int32)], 0)
            continue
        for kernel, rate in zip(kernels, np.linspace(1, smallest, NUM_KERNELS), strict=True):
            for part in shrink_polygon(polygon, float(rate)):
                cv2.fillPoly(kernel, [np.rint(part).astype(np.int32)], 1)
    kernels = np.minimum.accumulate(kernels, axis=0)  # rounding may move a corner out by a pixel
    return kernels, np.where(kernels[0], 1, valid).astype(np.uint8)


# ---------------------------------------------------------------------------------------- the loss


def dice(scores: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """The dice coefficient D = 2 sum(S G) / (sum(S^2) + sum(G^2)) of each picture (eq. 5).

    Args:
        scores: S, (B, H, W), 0..1.
        truth: G, (B, H, W), 0 or 1.
        where: (B, H, W) bool, the pixels that count.
    Returns: (B,), 0..1; 0 where neither scores nor truth have a pixel.
    """
    s = (scores * where).flatten(1)
    g = (truth * where).flatten(1)
    return 2 * (s * g).sum(1) / (s.square().sum(1) + g.square().sum(1)).clamp(min=1e-3)


def hard_pixels(scores: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Choose the pixels that count for the whole word: online hard example mining (section 3.5).

    These are all text pixels of a picture and three times as many others, namely the ones that look
    most like text. In a picture without text they are all valid pixels.

    Args: scores, truth and valid, (B, H, W) each; scores are 0..1.
    Returns: (B, H, W) bool.
    """
    text = (truth.bool() & valid.bool()).flatten(1)  # (B, H * W)
    rest = (~truth.bool() & valid.bool()).flatten(1)
    scores = scores.detach().flatten(1)
    counts = torch.minimum(3 * text.sum(1, keepdim=True), rest.sum(1, keepdim=True))  # (B, 1)
    # The threshold of a picture is the count-th largest score of `rest`. A GPU ranks all scores,
    # since the host would have to wait for the largest count.
    ranks = scores.shape[1] if scores.is_cuda else max(1, int(counts.max()))
    ranked = scores.masked_fill(~rest, -1).topk(ranks).values
    thresholds = ranked.gather(1, (counts - 1).clamp(min=0))
    chosen = text | rest & ((scores >= thresholds) | (counts == 0))
    return chosen.view_as(truth)


def psenet_loss(logits: Tensor, kernels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of L = 0.7 L_c + 0.3 L_s (eq. 4, 6 and 7), each a mean over the pictures.

    Args:
        logits: (B, n, H, W).
        kernels: (B, n, H, W), 0 or 1.
        valid: (B, H, W), 0 where nothing counts.
    Returns: L_c = 1 - D(S_0, G_0) over the hard pixels, for the whole word; and L_s, 1 minus the
        mean of D(S_i, G_i) over the shrunken kernels, on the pixels that are predicted to be text.
        Both are scalars, 0..1.
    Note: in a picture without words D and its gradient are 0, so that nothing is learned from it.
    """
    scores = logits.sigmoid()
    truth = kernels.float()
    valid = valid.bool()
    whole = dice(scores[:, 0], truth[:, 0], hard_pixels(scores[:, 0], truth[:, 0], valid))
    inside = valid & (scores[:, 0].detach() >= 0.5)
    shrunken = [dice(scores[:, i], truth[:, i], inside) for i in range(1, NUM_KERNELS)]
    return 1 - whole.mean(), 1 - torch.stack(shrunken).mean()


# ------------------------------------------------------------------------- from kernels to polygons


def expand_kernels(kernels: np.ndarray) -> np.ndarray:
    """Progressive scale expansion (algorithm 1).

    Each connected part of the last kernel, the smallest one, gets a number. Then all parts grow
    within the next larger kernel, by one pixel (up, down, left or right) at a time. A pixel belongs
    to the part that reaches it first. If several reach it at once, the smallest number wins.

    Args:
        kernels: (n, H, W), 0 or 1.
    Returns: labels (H, W), 0 for no word.
    """
    height, width = kernels.shape[1:]
    framed = np.pad(kernels.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    labels = cv2.connectedComponents(framed[-1], connectivity=4)[1].ravel()
    neighbours = (-1, 1, -width - 2, width + 2)  # in the flattened, framed picture
    for kernel in framed[-2::-1]:
        free = kernel.ravel() > 0
        border = np.flatnonzero(labels)
        while len(border):
            reached = np.concatenate([border + step for step in neighbours])
            owners = np.tile(labels[border], 4)
            new = free[reached] & (labels[reached] == 0)
            reached = reached[new]
            owners = owners[new]
            order = np.argsort(
                -owners, kind="stable"
            )  # the value written last is the one that stays
            labels[reached[order]] = owners[order]
            border = np.unique(reached)
    return labels.reshape(height + 2, width + 2)[1:-1, 1:-1]


# ------------------------------------------------------------------------------------- the network


class PSENet(PyramidDetector):
    """A feature pyramid and PSENet's head, which is one convolution."""

    loss_weights: ClassVar[Mapping[str, float]] = {"text": 0.7, "kernel": 0.3}
    usual_min_score: ClassVar[float] = 0.7

    def __init__(self, backbone: vlpt.Backbone, width: int) -> None:
        super().__init__(backbone, width)
        self.head = nn.Conv2d(width, NUM_KERNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Predict the kernels.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of 32.
        Returns: logits (B, n, H, W).
        """
        features = self.features(images)
        # float32: bfloat16 is too coarse for scores, see `VLPT.decode`.
        with vlpt.autocast_off(features):
            logits = self.head(features.to(self.head.weight.dtype))  # (B, n, H / 4, W / 4)
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    @staticmethod
    def draw_truth(
        polygons: Sequence[np.ndarray],
        ignored: np.ndarray,
        shape: tuple[int, int],
        config: DetectorConfig,
    ) -> tuple[np.ndarray, np.ndarray]:
        return draw_kernels(polygons, ignored, shape, config.smallest_kernel)

    @staticmethod
    def loss_terms(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return psenet_loss(logits, truth, valid)

    @staticmethod
    def find_words(
        scores: np.ndarray, config: DetectorConfig
    ) -> tuple[list[np.ndarray], list[float]]:
        labels = expand_kernels((scores > 0.5) & (scores[0] > 0.5))
        return trace_labels(labels, scores[0], config.curved, config.min_score, MIN_PIXELS)
