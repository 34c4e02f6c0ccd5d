"""Pictures; this is the one place that opens them.

Whatever a file holds becomes 8 bits of red, green and blue:

- What is transparent is seen on a white ground: black letters on a transparent ground are black on
  white, and white ones are lost.
- 16 bits a pixel are scaled from 0..65535. Numbers of 32 bits do not say what white is; it is the
  least of these that no pixel exceeds. Fractions: 1, 255 or 65535, else the brightest pixel. Whole
  numbers: 255, 65535 or 2^32 - 1.
- A photograph is turned as its EXIF data says, and as viewers show it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from readers.polygons import Polygons, fit_picture, turn_points

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # the tag of EXIF data
UPRIGHT = {  # what turns the pixels of a photograph with an orientation as viewers show it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How the quads of a photograph with an orientation were placed.
FIT_STORED = "oriented pictures whose quads fit the raw pixels only, and are taken so"
FIT_SHOWN = "oriented pictures whose quads fit the picture as shown only, and are taken so"
UNDECIDED_STORED = "oriented pictures whose quads do not say how, taken as on the raw pixels"
UNDECIDED_SHOWN = "oriented pictures whose quads do not say how, taken as on the picture as shown"


class DetectionSample(NamedTuple):
    """One annotated picture for a text detector."""

    image: Image.Image
    polygons: list[np.ndarray]  # of each word or region, (P, 2) float32 pixels x, y, P >= 3
    ignored: np.ndarray  # (len(polygons),) bool, True for a region that is no readable word
    unusable: int = 0  # how many of the ignored regions are words with unusable corners


class Picture(NamedTuple):
    """A picture as viewers show it, and how it is stored."""

    image: Image.Image  # RGB
    scale: float  # of the picture, 1 or less, for it may be decoded smaller than it is
    stored: tuple[int, int]  # width and height of the file's pixels
    orientation: int  # of these pixels, 1..8, by the EXIF data; 1 is upright


def is_picture(path: Path) -> bool:
    """Whether a file's name ends like a picture's, in capitals or not."""
    return path.suffix.lower() in PICTURE_ENDINGS


def open_picture(path: Path, min_side: int | None = None) -> Picture:
    """Open a picture in RGB, turned as its EXIF data says.

    Args: min_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, which is faster, as long as both
        sides keep so many pixels.
    Raises: ValueError, which names the file, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.load()  # its EXIF data may come after its pixels
            stored, orientation = stored_form(image)
            drafted = image.draft(None, (min_side, min_side)) if min_side else None
            if isinstance(image, TiffImageFile):
                image.filename = ""  # else Pillow maps the pixels of some with sides exchanged
            image.load()
            scale = drafted[1][2] / stored[0] if drafted else 1.0
            shown = to_rgb(image)
            if orientation > 1 and not isinstance(image, TiffImageFile):  # Pillow turns a TIFF
                shown = shown.transpose(UPRIGHT[orientation])
            return Picture(shown, scale, stored, orientation)
    except MemoryError:  # nothing need be wrong with the picture
        raise MemoryError(f"{path}: too little memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def open_image(path: Path, min_side: int | None = None) -> tuple[Image.Image, float]:
    """The picture and its scale, see `open_picture`."""
    picture = open_picture(path, min_side)
    return picture.image, picture.scale


def stored_form(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Width and height of the stored pixels of an opened picture, and its orientation."""
    # A PNG's own getexif would decode it, to look for EXIF data after its pixels.
    orientation = Image.Image.getexif(image).get(ORIENTATION)
    size = image.size
    if isinstance(image, TiffImageFile):  # recent versions of Pillow give its size as shown
        size = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return size, orientation if orientation in UPRIGHT else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, see the top of this file."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":  # I, I;16, I;16B, F: one number a pixel, of more than 8 bits
        return deep_to_rgb(image)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def deep_to_rgb(image: Image.Image) -> Image.Image:
    """A grey picture of 16 or 32 bits a pixel in RGB."""
    values = np.asarray(image)
    # Pillow 11.2 and earlier open a PNG of 16 bits as mode I; every version does so with PGM.
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        white = 65535.0
    else:
        if values.dtype == np.int32 and values.min() < 0:
            values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
        values = np.nan_to_num(values, nan=0.0)
        levels = (255.0, 65535.0, 2.0**32 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0)
        top = float(values.max())
        white = next((level for level in levels if top <= level), top)
    grey = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


# ----------------------------------------------------------------------- quads of oriented pictures


def place_polygons(
    polygons: Polygons, ignored: Polygons, picture: Picture, as_shown: bool
) -> tuple[Polygons, Polygons, tuple[str, ...]]:
    """Move annotated polygons to where they are in `picture.image`.

    A photograph with an orientation may have been annotated on its raw pixels, as they are stored,
    or as viewers show it. Polygons that fit only one of the two belong there.

    Args: as_shown: which of the two it is if both or neither fits.
    Returns: the polygons and the ignored ones, in pixels of `picture.image`; a note for the
        picture if it has an orientation.
    """
    scale = np.float32(picture.scale)
    notes: tuple[str, ...] = ()
    if picture.orientation > 1 and len(polygons) + len(ignored):
        note = orientation_note(polygons, ignored, picture.stored, picture.orientation, as_shown)
        notes = (note,)
        if note in (FIT_STORED, UNDECIDED_STORED):
            turn = (picture.orientation, *picture.stored)
            polygons = [turn_points(polygon, *turn) for polygon in polygons]
            ignored = [turn_points(polygon, *turn) for polygon in ignored]
    return [polygon * scale for polygon in polygons], [region * scale for region in ignored], notes


def orientation_note(
    polygons: Polygons,
    ignored: Polygons,
    stored: tuple[int, int],
    orientation: int,
    as_shown: bool = False,
) -> str:
    """Which pixels the polygons of an oriented picture belong to, as one of the four notes."""
    shown = stored[::-1] if orientation > 4 else stored
    fits = [fit_picture([*polygons, *ignored], *size) for size in (stored, shown)]
    if fits[0] == fits[1]:
        return UNDECIDED_SHOWN if as_shown else UNDECIDED_STORED
    return FIT_STORED if fits[0] else FIT_SHOWN


def read_orientation(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height of the stored pixels, and the orientation, without decoding the picture.

    A picture that cannot be opened counts as upright: reading it will say what is wrong. So does a
    PNG whose EXIF data come after its pixels.
    """
    try:
        with Image.open(path) as image:
            return stored_form(image)
    except Exception:
        return (0, 0), 1
