"""Annotated pictures for a text detector: reading and repairing them, and cutting training crops.

    data set of readers/ --CheckedDataset--> DetectionSample --crop_sample--> TrainingCrops

An ignored region is neither text nor background: no loss looks there, and a detection inside it
does not count. A word whose corners are unusable becomes such a region.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

import data_stub
from readers.detection import DetectionDataset, DetectionSample, open_detection
from transfer.heads import HEADS
from transfer.outlines import kernel_is_too_thin
from transfer.pyramid import PADDING_COLOR, DetectorConfig

SURVEYED = 100  # crops that are looked at before training


# -------------------------------------------------------------------------------------- annotations


def usable_polygon(polygon: np.ndarray) -> np.ndarray | None:
    """Return a polygon whose outline does not cross itself.

    Corners that are not listed in order around the word (such as top left, top right, bottom left,
    bottom right) are put in order around their centre. That is possible if they are the corners of
    a convex polygon.

    Args:
        polygon: (P, 2) pixels.
    Returns: (P, 2), unchanged where nothing is wrong; None where the order cannot be found or the
        polygon has no area.
    """
    shape = shapely.Polygon(polygon)
    if shape.is_valid and shape.area > 0:
        return polygon
    x, y = (polygon - polygon.mean(0)).T
    angles = np.arctan2(y, x)
    ordered = polygon[np.argsort((angles - angles[0]) % (2 * np.pi), kind="stable")]
    shape = shapely.Polygon(ordered)
    convex = np.isclose(shape.area, shape.convex_hull.area, rtol=1e-4)
    return ordered if shape.is_valid and shape.area > 0 and convex else None


def visible_part(polygon: np.ndarray, width: int, height: int) -> np.ndarray | None:
    """Return the part of a polygon that is in its picture, as (Q, 2) float32 pixels.

    Where the picture's edge cuts it into several parts, the largest one is returned.

    Args:
        polygon: (P, 2) pixels, whose outline does not cross itself.
        width, height: of the picture, pixels.
    Returns: the polygon itself if nothing of it is outside; None if nothing of it is inside.
    """
    if ((polygon >= 0) & (polygon <= (width, height))).all():
        return polygon
    shape = shapely.Polygon(polygon)
    if not shape.is_valid:
        return polygon
    parts = shapely.get_parts(shape.intersection(shapely.box(0, 0, width, height)))
    largest = max(parts, key=lambda part: part.area, default=None)
    if largest is None or largest.area == 0:
        return None
    return np.array(largest.exterior.coords[:-1], np.float32)


def outline_of(polygon: np.ndarray) -> np.ndarray:
    """The convex hull of a polygon (P, 2), as a region in which text is somewhere."""
    hull = cv2.convexHull(polygon)[:, 0]
    return hull if len(hull) > 2 else polygon


class CheckedDataset:
    """A data set of readers/ whose polygons are repaired, so that they can be drawn and compared.

    A word that cannot be repaired becomes an ignored region, and is counted as `unusable`. Of a
    polygon that reaches beyond its picture, only the visible part is kept.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return self.dataset.name(index)

    def __getitem__(self, index: int) -> DetectionSample:
        """Read a picture. Raises: ValueError, which names it."""
        image, polygons, ignored, _ = self.dataset[index]
        repaired = [usable_polygon(polygon) for polygon in polygons]
        unusable = np.array([polygon is None for polygon in repaired], bool)
        kept = [
            outline_of(old) if new is None else new
            for old, new in zip(polygons, repaired, strict=True)
        ]
        visible = [visible_part(polygon, *image.size) for polygon in kept]
        inside = np.array([polygon is not None for polygon in visible], bool)
        return DetectionSample(
            image,
            [polygon for polygon in visible if polygon is not None],
            (ignored | unusable)[inside],
            int((unusable & ~ignored)[inside].sum()),
        )


def open_dataset(
    spec: str, split: str, size: int = 256, count: int = 1000, seed: int = 0
) -> CheckedDataset:
    """Open one half of a data set, see `readers.detection.open_detection`."""
    return CheckedDataset(open_detection(spec, split, size, count, seed))


# -------------------------------------------------------------------------------------------- crops


def crop_sample(
    sample: DetectionSample, side: int, scale: float, rng: np.random.Generator
) -> DetectionSample:
    """Cut a square out of a picture and scale it to `side` pixels.

    With probability 0.75 it is placed near a random word.

    Args:
        side: height = width of the crop, pixels. What lies outside the picture is grey.
        scale: pixels of the crop per pixel of the picture.
        rng: draws the place, and small changes of brightness, contrast and colour.
    """
    whole = np.array(sample.image.size)
    size = side / scale  # of the crop, in pixels of the picture
    words = usable_words(sample)
    centre = rng.uniform(0, whole)
    if words and rng.random() < 0.75:
        word = words[int(rng.integers(len(words)))]
        centre = word.mean(0) + rng.uniform(-size / 3, size / 3, 2)
    corner = np.clip(centre - size / 2, 0, np.maximum(whole - size, 0))
    taken = np.minimum(whole - corner, size)
    box = (*corner, *(corner + taken))
    shape = np.maximum(1, np.rint(taken * scale)).astype(int)
    image = sample.image.resize(tuple(shape), Image.Resampling.BILINEAR, box, reducing_gap=2)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.7, 1.3))
    canvas = Image.new("RGB", (side, side), PADDING_COLOR)
    canvas.paste(image)
    polygons = [np.float32((polygon - corner) * scale) for polygon in sample.polygons]
    return sample._replace(image=canvas, polygons=polygons)


class TrainingCrops(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """An endless sequence of training crops.

    Each epoch takes the pictures in a new random order, one crop each; item k is the k-th of these
    crops. The longer side of a picture becomes `long_side` pixels times a random factor of 0.7 to
    1.4.
    """

    def __init__(
        self,
        source: DetectionDataset,
        config: DetectorConfig,
        side: int,
        seed: int,
        subset: int | None = None,
    ) -> None:
        """Choose the pictures.

        Args:
            source: all pictures for training.
            config: its long_side, head and smallest_kernel are used.
            side: height = width of a crop, pixels.
            seed: decides which pictures are in a subset, their order, and the crops.
            subset: how many pictures to train on. A smaller subset is part of a larger one.
        """
        if not len(source):
            raise ValueError(
                "--data: expected pictures to train on, got none in the training split"
            )
        if subset is not None and not 1 <= subset <= len(source):
            raise ValueError(f"--subset: expected 1 to {len(source)} pictures, got {subset}")
        order = np.random.default_rng([seed, 1]).permutation(len(source))
        self.indices = order[:subset]
        self.source = source
        self.config = config
        self.side = side
        self.seed = seed

    def read(self, k: int) -> DetectionSample:
        """The picture that item k is cut from."""
        epoch, position = divmod(k, len(self.indices))
        order = data_stub.shuffled(len(self.indices), self.seed, epoch)
        return self.source[int(self.indices[order[position]])]

    def cut(self, k: int, sample: DetectionSample) -> DetectionSample:
        """The crop that item k holds, of its picture."""
        rng = np.random.default_rng([self.seed, k])
        scale = self.config.long_side / max(sample.image.size) * 2 ** rng.uniform(-0.5, 0.5)
        return crop_sample(sample, self.side, scale, rng)

    def draw(self, crop: DetectionSample) -> tuple[np.ndarray, np.ndarray]:
        """What is to be predicted in a crop and where it is valid, as the head draws it."""
        shape = (self.side, self.side)
        head = HEADS[self.config.head]
        return head.draw_truth(crop.polygons, crop.ignored, shape, self.config)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (3, S, S) uint8, truth (C, S, S) and valid (S, S), see `draw`."""
        crop = self.cut(k, self.read(k))
        pixels = np.array(crop.image).transpose(2, 0, 1)
        truth, valid = self.draw(crop)
        return torch.from_numpy(pixels), torch.from_numpy(truth), torch.from_numpy(valid)


# ------------------------------------------------------------------------------ before the training


@dataclass(frozen=True)
class Survey:
    """What the first training crops hold."""

    crops: int  # crops that were looked at
    without_words: int  # crops in which no pixel is text
    words: int  # usable words of the pictures that these crops are cut from
    unusable: int  # words whose corners cross each other, or that have no area
    too_thin: int  # words whose smallest kernel is less than a pixel thick at long_side


def survey(data: TrainingCrops, count: int) -> Survey:
    """Look at the first crops, at most SURVEYED or `count` of them.

    Raises: ValueError if none of the training pictures has a usable word, as nothing can be learned
        from them.
    """
    crops = min(SURVEYED, count)
    without_words = words = unusable = too_thin = 0
    for k in range(crops):
        sample = data.read(k)
        truth, _ = data.draw(data.cut(k, sample))
        without_words += not truth[0].any()
        if k < len(data.indices):  # a picture's first crop
            usable = usable_words(sample)
            scale = data.config.long_side / max(sample.image.size)
            words += len(usable)
            unusable += sample.unusable
            too_thin += sum(
                kernel_is_too_thin(p * scale, data.config.smallest_kernel) for p in usable
            )
    if not words:
        rest = range(crops, len(data.indices))
        if not any(usable_words(data.read(k)) for k in rest):
            raise ValueError(
                f"--data: expected words to train on, got {len(data.indices)} pictures without "
                "one; all text is marked unreadable or has unusable corners"
            )
    return Survey(crops, without_words, words, unusable, too_thin)


def usable_words(sample: DetectionSample) -> Sequence[np.ndarray]:
    """The polygons that are not ignored."""
    return [p for p, skip in zip(sample.polygons, sample.ignored, strict=True) if not skip]


def describe_survey(found: Survey, config: DetectorConfig) -> list[str]:
    """What a user should know before the training starts, a sentence each."""
    lines = []
    if found.unusable:
        total = found.words + found.unusable
        lines.append(
            f"warning: {found.unusable} of {total} words have corners that enclose no simple area "
            f"(for example because they cross each other) and are ignored"
        )
    if found.too_thin:
        shrunken = "shrunken copy" if config.head == "db" else "smallest kernel"
        lines.append(
            f"warning: {found.too_thin} of {found.words} words are so small at --long "
            f"{config.long_side} that their {shrunken} is less than a pixel thick, so they "
            f"can hardly be learned; a larger --long may help"
        )
    if found.without_words > found.crops / 2:
        lines.append(
            f"warning: {found.without_words} of the first {found.crops} crops contain no word, so "
            f"little can be learned from them; a larger --crop or a smaller --long may help"
        )
    return lines
