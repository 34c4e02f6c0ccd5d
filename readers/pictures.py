"""Pictures and the quads in them; this is the one place that opens a picture."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps


class DetectionSample(NamedTuple):
    """One annotated picture for a text detector."""

    image: Image.Image
    polygons: list[np.ndarray]  # of each word or region, (P, 2) float32 pixels x, y, P >= 3
    ignored: np.ndarray  # (len(polygons),) bool, True: "###", neither text nor background


def open_image(path: Path, min_side: int | None = None) -> tuple[Image.Image, float]:
    """Open a picture in RGB, turned as its EXIF data says.

    Args: min_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, which is faster, as long as both
        sides keep so many pixels.
    Returns: the picture and its scale, 1 or less.
    Raises: ValueError, which names the file, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            full_width = image.width
            drafted = image.draft(None, (min_side, min_side)) if min_side else None
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # as viewers show it, and quads are
            scale = drafted[1][2] / full_width if drafted else 1.0
            return (image if image.mode == "RGB" else image.convert("RGB")), scale
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{path}: not a readable picture ({error})") from None


@np.errstate(over="ignore")
def to_quads(corners: object, count: int) -> np.ndarray:
    """Numbers, or text of numbers, as (count, 4, 2) float32 pixels. Raises: ValueError etc."""
    quads = np.array(corners, np.float32).reshape(count, 4, 2)
    if not np.isfinite(quads).all():
        raise ValueError("a corner is not a finite number")
    return quads


def clip_quads(quads: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Move the corners of quads (words, 4, 2) into a picture.

    Returns: the quads; (words,) bool, which of them keep more than half of their area.
    """
    clipped = quads.clip(0, np.array([width, height], np.float32))
    return clipped, areas(clipped) > areas(quads) / 2


def areas(quads: np.ndarray) -> np.ndarray:
    """The area of each of (words, 4, 2) quads by the shoelace formula."""
    x, y = quads[..., 0], quads[..., 1]
    return abs((x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(-1)) / 2
