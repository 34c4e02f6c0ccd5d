"""What the detectors share: their settings, the backbone and the feature pyramid.

    image (B, 3, H, W) --Backbone--> maps at strides 4, 8, ... --pyramid--> (B, width, H / 4, W / 4)

psenet.py and dbnet.py each put a head on it. The pyramid is that of PSENet (Wang et al., CVPR 2019,
arXiv 1903.12473, section 3.2).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vlpt

PADDING_COLOR = (114, 114, 114)  # grey, for what lies outside the picture
MIN_PIXELS = 10  # a smaller detection is dropped
BACKBONES: dict[str, Mapping[str, Any]] = {
    "tiny": vlpt.TINY.backbone_size,  # the backbone of the trainer's tiny preset
    **{name: {} for name in (*vlpt.TORCHVISION_BACKBONES, *vlpt.CLIP_BACKBONES)},
}


@dataclass(frozen=True)
class DetectorConfig:
    """The settings of a detector that outlive its training; a checkpoint holds them."""

    backbone: str = "tiny"  # one of BACKBONES
    width: int = 64  # channels of the pyramid; published: 256
    long_side: int = 960  # the longer side of a picture is scaled to this, pixels
    smallest_kernel: float = 0.4  # the rate by which PSENet's smallest kernel and DB's text shrink
    curved: bool = False  # detections are polygons, not quadrilaterals
    min_score: float = 0.7  # a detection with a smaller mean score is dropped, 0..1
    head: str = "psenet"  # one of transfer.heads.HEADS


class PyramidDetector(nn.Module, ABC):
    """A backbone and a feature pyramid, to which a subclass adds a head, its loss and its targets.

    Stage i of the backbone is C_i, with i = 2, 3, ... at stride 2 ** i:
        P_i = smooth(lateral(C_i) + up(P_i+1))
        F = P_2 || up(P_3) || up(P_4) || ...
        features = fuse(F)
    The forward of a subclass returns logits (B, n, H, W).
    """

    loss_weights: ClassVar[Mapping[str, float]]  # of each term of the loss, by its name
    usual_min_score: ClassVar[float]  # for DetectorConfig.min_score

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

    def features(self, images: Tensor) -> Tensor:
        """Compute what the head reads.

        Args:
            images: (B, 3, H, W), normalised; H and W are multiples of 32.
        Returns: (B, width, H / 4, W / 4).
        """
        maps = self.backbone(images)
        laterals = [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]
        levels = [laterals.pop()]  # from the coarsest to the finest
        for smooth in self.smooth:
            above = F.interpolate(levels[-1], scale_factor=2)
            levels.append(smooth(laterals.pop() + above))
        size = levels[-1].shape[2:]  # (H / 4, W / 4)
        levels = [F.interpolate(p, size, mode="bilinear", align_corners=False) for p in levels]
        return self.fuse(torch.cat(levels, 1))

    @staticmethod
    @abstractmethod
    def draw_truth(
        polygons: Sequence[np.ndarray],
        ignored: np.ndarray,
        shape: tuple[int, int],
        config: DetectorConfig,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw what is to be predicted in a picture.

        Args:
            polygons: of each word or region, (P, 2) pixels.
            ignored: (len(polygons),) bool, True for a region that is neither text nor background.
            shape: (H, W) of the picture.
            config: its smallest_kernel is used.
        Returns: truth (C, H, W), whose first map is not 0 where text is; valid (H, W) uint8, 0
            where the truth is unknown.
        """

    @staticmethod
    @abstractmethod
    def loss_terms(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """The terms of the loss, scalars, in the order of `loss_weights`.

        Args:
            logits: (B, n, H, W).
            truth: (B, C, H, W) and valid: (B, H, W), as `draw_truth` returns them.
        """

    @staticmethod
    @abstractmethod
    def find_words(
        scores: np.ndarray, config: DetectorConfig
    ) -> tuple[list[np.ndarray], list[float]]:
        """Turn the scores of a picture into polygons.

        Args:
            scores: (n, H, W), the sigmoid of the logits.
            config: its curved and min_score are used.
        Returns: (P, 2) float32 polygons, clockwise as one sees them; the mean score of each, 0..1.
        """
