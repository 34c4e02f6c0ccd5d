"""PSENet, a text detector, on a backbone of vlpt.py.

A small re-implementation of "Shape Robust Text Detection with Progressive Scale Expansion Network"
(Wang et al., CVPR 2019, arXiv 1903.12473). Section and equation numbers refer to that paper.

A feature pyramid predicts for every pixel whether it lies inside the polygon of a word, and whether
it lies inside each of n - 1 shrunken copies of that polygon, which are called kernels. The smallest
kernels are apart even where words touch. So words are told apart there, and each one then grows
back to its full size, kernel by kernel.

    image (B, 3, H, W) --Backbone--> maps at strides 4, 8, ... --pyramid--> logits (B, n, H, W)
    training:   polygons --shrink, draw--> kernels (B, n, H, W);  logits, kernels -> psenet_loss
    detection:  logits --threshold, expand--> labels (H, W) --trace--> polygons

There are n = 7 maps, and the first one is the whole word. Points are (x, y) in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyclipper
import shapely
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

import vlpt

NUM_KERNELS = 7  # n, the whole word included
PADDING_COLOR = (114, 114, 114)  # grey, for what lies outside the picture
MIN_PIXELS = 10  # a smaller detection is dropped
BACKBONES: dict[str, Mapping[str, Any]] = {
    "tiny": vlpt.TINY.backbone_size,  # the backbone of the trainer's tiny preset
    "resnet18": {},
    "resnet34": {},
    "resnet50": {},
    "resnet101": {},
    "clip_resnet50": {},
    "clip_resnet101": {},
}


# ------------------------------------------------------------------------------ the training target


def shrink_polygon(polygon: np.ndarray, rate: float) -> list[np.ndarray]:
    """Move every side of a polygon inwards by d = A (1 - r^2) / P, Vatti clipping (section 3.3).

    Args:
        polygon: (P, 2) pixels, with area A and perimeter P.
        rate: r, above 0 and at most 1. At 1 the polygon stays as it is.
    Returns: the parts that are left, (Q, 2) float32 pixels each. A polygon with a narrow waist
        falls into several parts; a polygon without an area has none.
    """
    if rate == 1:
        return [polygon]
    shape = shapely.Polygon(polygon)
    if shape.area == 0:
        return []
    distance = shape.area * (1 - rate**2) / shape.length
    precision = 1000  # pyclipper takes whole numbers
    offset = pyclipper.PyclipperOffset()
    points = np.rint(polygon * precision).astype(np.int64).tolist()
    offset.AddPath(points, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    parts = offset.Execute(-precision * distance)
    return [np.array(part, np.float32) / precision for part in parts]


def kernel_is_too_thin(polygon: np.ndarray, smallest: float) -> bool:
    """Whether the smallest kernel of a word is nowhere a full pixel thick, or missing."""
    parts = shrink_polygon(polygon, smallest)
    return all(shapely.Polygon(part).buffer(-0.5).is_empty for part in parts)


def draw_kernels(
    polygons: Sequence[np.ndarray], ignored: np.ndarray, shape: tuple[int, int], smallest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw what is to be predicted in a picture.

    Kernel i of 0 .. n - 1 has the shrinking rate r_i = 1 - (1 - m) i / (n - 1), where m is the
    smallest rate. Each kernel lies within the one before it.

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


# ------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class DetectorConfig:
    """The settings of a detector that outlive its training; a checkpoint holds them."""

    backbone: str = "tiny"  # one of BACKBONES
    width: int = 64  # channels of the pyramid; published: 256
    long_side: int = 960  # the longer side of a picture is scaled to this, pixels
    smallest_kernel: float = 0.4  # m, the rate of the smallest kernel
    curved: bool = False  # detections are polygons, not quadrilaterals
    min_score: float = 0.7  # a detection with a smaller mean score is dropped, 0..1


class PSENet(nn.Module):
    """A backbone and a feature pyramid (section 3.2).

    Stage i of the backbone is C_i, with i = 2, 3, ... at stride 2 ** i:
        P_i = smooth(lateral(C_i) + up(P_i+1))
        F = P_2 || up(P_3) || up(P_4) || ...
        logits = up(head(fuse(F)))
    """

    def __init__(self, backbone: vlpt.Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
        backbone.train()
        channels = [feature_map.shape[1] for feature_map in maps]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels[1:])
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(width, NUM_KERNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Predict the kernels.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of 32.
        Returns: logits (B, n, H, W).
        """
        maps = self.backbone(images)
        laterals = [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]
        levels = [laterals.pop()]  # from the coarsest to the finest
        for smooth in self.smooth:
            above = F.interpolate(levels[-1], scale_factor=2)
            levels.append(smooth(laterals.pop() + above))
        size = levels[-1].shape[2:]  # (H / 4, W / 4)
        levels = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in levels]
        fused = self.fuse(torch.cat(levels, 1))  # (B, width, H / 4, W / 4)
        with vlpt.autocast_off(fused):  # scores in float32, see there
            logits = self.head(fused.to(self.head.weight.dtype))  # (B, n, H / 4, W / 4)
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def build_detector(config: DetectorConfig, weights: str | None = None) -> PSENet:
    """Build a detector.

    Args:
        config: its sizes.
        weights: a file that vlpt.load_backbone reads. Without one the backbone is random.
    Raises: ValueError or OSError if the file does not hold the backbone that `config` names.
    """
    name = "clip_resnet" if config.backbone == "tiny" else config.backbone
    size = BACKBONES[config.backbone]
    if weights is None:
        backbone = vlpt.build_backbone(name, **size)
    else:
        backbone = vlpt.load_backbone(weights, name, **size)
    return PSENet(backbone, config.width)


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
    """Choose the pixels that count for the whole word: online hard example mining (section 3.4).

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
    Returns: L_c = 1 - D(S_1, G_1) over the hard pixels, for the whole word; and L_s, 1 minus the
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


def trace_labels(
    labels: np.ndarray, scores: np.ndarray, curved: bool, min_score: float, min_pixels: int
) -> tuple[list[np.ndarray], list[float]]:
    """Turn labels into polygons.

    Args:
        labels: (H, W), 0 for no word.
        scores: (H, W), 0..1.
        curved: whether to follow the outline; otherwise the smallest rectangle around it is taken.
        min_score: a part with a smaller mean score is dropped.
        min_pixels: a smaller part is dropped.
    Returns: (P, 2) float32 polygons, clockwise as one sees them; the mean score in each.
    """
    polygons = []
    means = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[rows, columns] == label
        mean = float(scores[rows, columns][inside].mean())
        if inside.sum() < min_pixels or mean < min_score:
            continue
        mask = np.pad(inside.astype(np.uint8), 1)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        contour = max(contours, key=cv2.contourArea)
        if curved:
            polygon = cv2.approxPolyDP(contour, 0.01 * cv2.arcLength(contour, True), True)[:, 0]
        else:
            polygon = cv2.boxPoints(cv2.minAreaRect(contour))
        if len(polygon) < 3 or not cv2.contourArea(polygon):
            continue
        if cv2.contourArea(polygon, oriented=True) < 0:
            polygon = polygon[::-1]
        corner = np.array([columns.start - 1, rows.start - 1], np.float32)
        polygons.append(np.float32(polygon) + corner)
        means.append(mean)
    return polygons, means


@torch.no_grad()
def detect_text(
    model: PSENet, image: Image.Image, config: DetectorConfig
) -> tuple[list[np.ndarray], list[float]]:
    """Find the text in a picture of any size.

    Returns: (P, 2) polygons in the picture's own pixels; the mean score of each, 0..1.
    """
    scale = config.long_side / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    canvas = Image.new("RGB", (-width // 32 * -32, -height // 32 * -32), PADDING_COLOR)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].to(model.head.weight.device)
    images = vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last)
    scores = model(images)[0, :, :height, :width].sigmoid().cpu().numpy()  # (n, height, width)
    labels = expand_kernels((scores > 0.5) & (scores[0] > 0.5))
    polygons, means = trace_labels(labels, scores[0], config.curved, config.min_score, MIN_PIXELS)
    stretch = np.divide(image.size, (width, height))
    corner = np.subtract(image.size, 1)
    return [((p + 0.5) * stretch - 0.5).clip(0, corner) for p in polygons], means
