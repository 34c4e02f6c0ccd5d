"""Pictures with words for VLPT: an embedded renderer, and readers for three layouts of real data.

Every source is a dataset of `Sample`s: an RGB picture, its words, and a quadrilateral around
each word (or None where the layout has none; pre-training never looks at them).

    Rendered(size, count, seed)   draws scene-like pictures; no download, any number of them
    SynthText(root)               gt.mat beside the folders of images, of any number
    ICDAR2015(root)               the training split; img_801 .. img_1000 are held out
    JsonLines(path)               {"image": "a.jpg", "words": ["EXIT"], "quads": [[[x, y] * 4]]}

Each has a "train" and a "heldout" half. In rendered pictures the halves share no word; in the
others they share no picture. `Pretraining` turns a source into what the model eats: N words an
image, drawn anew each epoch, as ids. `python data_stub.py --sheet sheet.png` shows a source;
`python data_stub.py check SOURCE` reads one through and reports what it holds and lacks;
`python data_stub.py fake-synthtext DIR --images 858750` writes one of SynthText's published size.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import shutil
import string
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

import vlpt

SPLITS = ("train", "heldout")
EMPTY, CUT = "words that are empty", f"words cut to {vlpt.CHARS} characters"
UNKNOWN = "words without a character of the alphabet"
PARTLY = "words with some characters outside the alphabet (kept)"
OUTSIDE = "words mostly outside their picture"
MOST = 6000  # characters of an alphabet that is built from words
Box = tuple[int, int, int, int]  # left, top, right, bottom, whole pixels
Light = TypeVar("Light", float, Tensor)  # of one pixel, or of a picture
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
                "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
WORDS = """open closed exit enter push pull sale hotel coffee bakery market street avenue road
station platform bus taxi police fire school library museum theatre cinema parking garage bank
post office pharmacy doctor clinic hospital bar grill pizza burger noodle sushi tea juice water
milk bread fresh organic natural quality premium original classic since best new hot cold free
wifi menu lunch dinner breakfast special today only please thank you welcome private danger
warning caution stop slow speed limit no smoking entry left right north south east west central
park garden river bridge tower plaza square center city town house home garden kitchen travel
tours tickets books music records fashion shoes jewelry watch flower gift toys sport fitness
salon barber beauty nails repair service tools paint supply electric phone computer design print
photo studio gallery art craft wine beer spirits the and for with from your our all day""".split()


class Sample(NamedTuple):
    """One picture of any source."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    words: list[str]  # as annotated: may be empty, unreadable ones left out
    quads: np.ndarray | None  # (words, 4, 2) float32 pixels x, y, clockwise from the top left
    outside: int = 0  # annotated words that are not here: most of their quad is off the picture
    ignored: np.ndarray | None = None  # (regions, 4, 2): text that is no word and no background


class Source(torch.utils.data.Dataset[Sample], Sized, ABC):
    """Samples by number, from 0."""

    root: str | Path  # names the source in messages
    notes: Counter[str]  # what of the annotation is not in the samples

    @abstractmethod
    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        """Which pictures have a learnable word, (len,) bool; `notes` counts the other words."""

    @abstractmethod
    def characters(self) -> Counter[str]:
        """How often each character occurs in the words, in NFC."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a picture in a message."""

    @abstractmethod
    def read(self, index: int, least: int | None = None) -> Sample:
        """Picture `index`, if need be smaller but of `least` pixels a side, and quads to match.

        Raises: ValueError, which names the file, if it cannot be decoded.
        """

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)


@dataclass(frozen=True)
class Scene:
    """What the renderer draws; the defaults are the full variety."""

    alphabet: str = vlpt.PRINTABLE  # characters that may appear
    kinds: tuple[str, ...] = ("list", "pseudo", "number", "random", "random")  # equally likely
    words: tuple[int, int] = (1, 4)  # a picture, fewest and most
    chars: tuple[int, int] = (2, 10)  # of a word that is not from the list
    height: tuple[float, float] = (0.08, 0.25)  # of the letters, as a part of the picture
    tilt: float = 25.0  # largest rotation, degrees
    clutter: float = 1.0  # strength of texture, shapes, lighting and blur, 0..1


DIGITS = Scene(alphabet=string.digits, kinds=("number",), words=(1, 1), chars=(2, 4),
               height=(0.25, 0.45), tilt=10.0)  # fmt: skip  # for 64 pixels: what `TINY` learns on


# ------------------------------------------------------------------------------- the renderer


@lru_cache(maxsize=1)
def font_files() -> tuple[str | None, ...]:
    """The machine's Latin text fonts, by path, after None for Pillow's built-in one."""
    found = {
        path
        for folder in FONT_FOLDERS
        for path in Path(folder).expanduser().rglob("*.[to]tf")
        if not re.search("symbol|emoji|math|dingbat|icon|noto(?!sans-|serif-)", path.name.lower())
    }
    return (None, *sorted(map(str, found))[:64])


@lru_cache(maxsize=512)
def load_font(path: str | None, pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(path, pixels) if path else ImageFont.load_default(pixels)


def split_of(word: str) -> str:
    """The half that a rendered word belongs to: one word in ten is held out, whatever its case."""
    return SPLITS[zlib.crc32(word.lower().encode()) % 10 == 0]


def draw_word(rng: np.random.Generator, scene: Scene, split: str) -> str:
    """Draw a word of one of the scene's kinds that belongs to the split.

    Raises: ValueError if none is found, as one letter alone, for example, makes too few words.
    """
    letters = [c for c in scene.alphabet if c in string.ascii_lowercase] or list(scene.alphabet)
    digits = [c for c in scene.alphabet if c.isdigit()] or list(scene.alphabet)
    for _ in range(1000):
        kind = scene.kinds[rng.integers(len(scene.kinds))]
        length = int(rng.integers(scene.chars[0], scene.chars[1] + 1))
        if kind == "list":
            word = WORDS[rng.integers(len(WORDS))]
        elif kind == "pseudo":  # consonants and vowels in turn
            halves = [c for c in letters if c not in "aeiou"], [c for c in letters if c in "aeiou"]
            start = rng.integers(2)
            turns = (halves[(start + k) % 2] or letters for k in range(length))
            word = "".join(turn[rng.integers(len(turn))] for turn in turns)
        else:
            chars = digits if kind == "number" else scene.alphabet
            word = "".join(chars[k] for k in rng.integers(len(chars), size=length))
        if kind in ("list", "pseudo"):
            word = (word, word.upper(), word.title())[rng.integers(3)]
        if set(word) <= set(scene.alphabet) and split_of(word) == split:
            return word
    raise ValueError(
        f"alphabet: got {scene.alphabet!r}, no {split} word in it, wanted more letters"
    )


def merge(planes: Iterable[np.ndarray]) -> Image.Image:
    """An RGB picture from three float planes of 0..255; one by one is faster than (H, W, 3)."""
    bands = (Image.fromarray(plane.clip(0, 255).astype(np.uint8)) for plane in planes)
    return Image.merge("RGB", tuple(bands))


@lru_cache(maxsize=4)
def ramp(size: int) -> np.ndarray:
    return np.linspace(-1, 1, size, dtype=np.float32)


@lru_cache(maxsize=8)
def bicubic(cells: int, size: int) -> np.ndarray:
    """The (size, cells) matrix that enlarges a column as Pillow's BICUBIC does."""
    away = abs((np.arange(size)[:, None] + 0.5) * cells / size - 0.5 - np.arange(cells))
    near, far = (1.5 * away - 2.5) * away**2 + 1, ((2.5 - 0.5 * away) * away - 4) * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def enlarge(noise: np.ndarray, size: int) -> np.ndarray:
    """A square of float32 at another size; from few cells by matrices, as that is faster."""
    if len(noise) > 16:
        return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
    weights = bicubic(len(noise), size)
    return (weights @ (noise @ weights.T).astype(np.float32)).astype(np.float32)


def background(rng: np.random.Generator, size: int, clutter: float) -> Image.Image:
    """A gradient with texture that is mostly luminance noise, and a few shapes."""
    base = rng.uniform(30, 225, 3) * 0.5 + rng.uniform(30, 225) * 0.5
    slope, tint = rng.normal(0, 30 * clutter, (2, 3)), rng.uniform(0.85, 1.15, 3)
    texture = np.zeros((size, size), np.float32)
    for cells in (4, 16, size // 2):
        noise = rng.standard_normal((cells, cells), np.float32)
        texture += enlarge(noise, size) * np.float32(rng.uniform(2, 16) * clutter)
    image = merge(
        texture * np.float32(tint[c])
        + (ramp(size) * np.float32(slope[0, c]))[:, None]
        + (ramp(size) * np.float32(slope[1, c]) + np.float32(base[c]))
        for c in range(3)
    )
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.poisson(3 * clutter)):
        color = (*rng.integers(0, 256, 3).tolist(), int(rng.integers(60, 200)))
        box = np.sort(rng.uniform(-0.2, 1.2, (2, 2)) * size, axis=0).ravel().tolist()
        shape = rng.integers(4)
        if shape == 0:
            draw.rectangle(box, fill=color)
        elif shape == 1:
            draw.ellipse(box, fill=color)
        elif shape == 2:
            draw.polygon(rng.uniform(0, size, 6).tolist(), fill=color)
        else:
            draw.line(box, fill=color, width=int(rng.integers(1, 2 + size // 40)))
    return image


def homography(width: float, height: float, quad: np.ndarray) -> np.ndarray:
    """The 3x3 matrix that maps the corners of a width x height box to a quad, in closed form."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = quad.tolist()
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    dx1, dy1, dx2, dy2 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    det = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det
    unit = np.array([[x1 - x0 + g * x1, x3 - x0 + h * x3, x0],
                     [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1]])  # fmt: skip
    return unit / np.array([width, height, 1])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (P, 2) points by a homography."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def box_corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def luminance(color: Sequence[Light]) -> Light:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def find_room(
    rng: np.random.Generator, shape: tuple[int, int], scene: Scene, size: int, taken: list[Box]
) -> tuple[np.ndarray, Box, float] | None:
    """A tilted quad of about a (width, height) box on free ground, the box around it, and its
    scale; None if the picture is full.
    """
    width, height = shape
    corners = box_corners(-width / 2, -height / 2, width / 2, height / 2)
    scale = min(1.0, 0.95 * size / max(shape))
    for _ in range(12):
        quad = corners * scale * (1 + rng.uniform(-0.1, 0.1, (4, 2)))
        angle = math.radians(max(-scene.tilt, min(scene.tilt, rng.normal(0, scene.tilt / 2))))
        cos, sin = math.cos(angle), math.sin(angle)
        quad = quad @ np.array([[cos, sin], [-sin, cos]])
        low, high = quad.min(0), quad.max(0)
        room = size - (high - low)
        if room.min() > 0:
            quad += rng.random(2) * room - low
            x0, y0 = map(math.floor, quad.min(0).tolist())
            x1, y1 = map(math.ceil, quad.max(0).tolist())
            if all(x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0 for u0, v0, u1, v1 in taken):
                return quad, (x0, y0, x1, y1), scale
        scale *= 0.93
    return None


def contrasting(rng: np.random.Generator, ground: float) -> tuple[int, int, int]:
    """A random colour whose luminance is far from the ground's."""
    for _ in range(8):
        color = tuple(rng.integers(0, 256, 3).tolist())
        if abs(luminance(color) - ground) > 100:
            return color
    return (0, 0, 0) if ground > 127 else (255, 255, 255)


def paint(
    rng: np.random.Generator, ink: Image.Image, outline: Image.Image | None, pad: int,
    ground: float, plated: bool,
) -> Image.Image:  # fmt: skip
    """The word of a mask (L) with plate, shadow and outline (RGBA), for a ground so light."""
    patch = Image.new("RGBA", ink.size)
    if plated:
        plate = tuple(rng.integers(0, 256, 3).tolist())
        ground, corner = luminance(plate), int(rng.integers(0, pad + 1))
        box = (0, 0, ink.width - 1, ink.height - 1)
        ImageDraw.Draw(patch).rounded_rectangle(box, corner, fill=plate)
    if rng.random() < 0.2:
        shift = rng.integers(1, 2 + ink.height // 16, 2).tolist()
        patch.paste((0, 0, 0, 110), tuple(shift), ink)
    color = contrasting(rng, ground)
    edge = contrasting(rng, luminance(color))
    if outline:
        patch.paste((*edge, 255), mask=outline)
    patch.paste((*color, 255), mask=ink)
    return patch


def place_word(
    rng: np.random.Generator, image: Image.Image, word: str, scene: Scene, taken: list[Box]
) -> np.ndarray | None:
    """Draw a word into the image where no other is: its quad (4, 2), or None for lack of room.

    Only the word's own box is warped, not the canvas: that is what makes rendering fast.
    """
    height = rng.uniform(*scene.height) * image.width
    font = load_font(font_files()[rng.integers(len(font_files()))], max(10, round(height * 1.3)))
    left, top, right, bottom = font.getbbox(word)
    stroke = int(rng.integers(1, 2 + int(height) // 12)) if rng.random() < 0.2 else 0
    pad = 2 + stroke + int(rng.integers(0, 1 + int(height) // 4))
    shape = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    found = find_room(rng, shape, scene, image.width, taken)
    if found is None or found[2] * (bottom - top) < 6:  # letters below 6 pixels are unreadable
        return None
    quad, box, _ = found
    under = image.crop(box)
    matrix = homography(*shape, quad - box[:2])
    inverse = np.linalg.inv(matrix)
    inverse = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    warp = under.size, Image.Transform.PERSPECTIVE, inverse, Image.Resampling.BILINEAR
    ink, outline = Image.new("L", shape), Image.new("L", shape) if stroke else None
    at = (pad - left, pad - top)
    ImageDraw.Draw(ink).text(at, word, 255, font)
    if outline:
        ImageDraw.Draw(outline).text(at, word, 255, font, stroke_width=stroke)
    inked = np.asarray(ink.transform(*warp)) > 128
    ground = float(np.asarray(under.convert("L")).mean())
    for attempt in range(4):
        plated = rng.random() < 0.3 or attempt > 1  # a busy ground gets a plate in the end
        patch = paint(rng, ink, outline, pad, ground, plated).transform(*warp)
        result = under.copy()
        result.paste(patch, mask=patch)
        light = np.asarray(result.convert("L"))
        if inked.any() and abs(light[inked].mean() - light[~inked].mean()) > 50:
            break  # readable as composed, not only as planned
    image.paste(result, box[:2])
    taken.append(box)
    return apply(matrix, box_corners(pad, pad, shape[0] - pad, shape[1] - pad)) + box[:2]


def finish(rng: np.random.Generator, image: Image.Image, clutter: float) -> np.ndarray:
    """Uneven light, blur and sensor noise over the whole picture."""
    size, bands = image.width, image.split()
    if rng.random() < 0.3 * clutter:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.3, 0.5 + size / 300))
        bands = tuple(band.filter(blur) for band in bands)
    x, y = ramp(size), ramp(size)[:, None]
    tilt = rng.normal(0, 0.12 * clutter, 2)
    light = 1 + rng.normal(0, 0.1 * clutter) + tilt[0] * y + tilt[1] * x
    light = light.astype(np.float32)
    noise = rng.standard_normal((size, size), np.float32) * np.float32(rng.uniform(0, 8 * clutter))
    return np.array(merge(np.asarray(band) * light + noise for band in bands))


def render(
    seed: int, index: int, size: int, split: str = "train", scene: Scene = Scene()
) -> Sample:
    """Draw picture `index` of a seed: the same bytes for the same arguments and fonts.

    Args:
        size: height = width, pixels.
        split: "train" or "heldout"; no word is in both.
    Returns: a sample with at least one word and a quad for each.
    """
    rng = np.random.default_rng([seed, index, SPLITS.index(split)])
    image = background(rng, size, scene.clutter)
    words, quads, taken = list[str](), list[np.ndarray](), list[Box]()
    wanted = int(rng.integers(scene.words[0], scene.words[1] + 1))
    while not words:  # a long word in a wide font may find no room: then another one
        for _ in range(wanted):
            word = draw_word(rng, scene, split)
            quad = place_word(rng, image, word, scene, taken)
            if quad is not None:
                words.append(word)
                quads.append(quad)
    return Sample(finish(rng, image, scene.clutter), words, np.array(quads, np.float32))


class Rendered(Source):
    """Pictures 0 .. count - 1 of `render`; their words are of the scene's alphabet."""

    def __init__(
        self, size: int, count: int, seed: int = 0, split: str = "train", scene: Scene = Scene()
    ) -> None:
        self.size, self.count, self.seed, self.split, self.scene = size, count, seed, split, scene
        self.root, self.notes = "synth", Counter()
        draw_word(np.random.default_rng(seed), scene, split)  # fails now, if it ever will

    def __len__(self) -> int:
        return self.count

    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        return np.ones(self.count, bool)

    def characters(self) -> Counter[str]:
        return Counter(self.scene.alphabet)

    def name(self, index: int) -> str:
        return f"picture {index} of seed {self.seed}"

    def read(self, index: int, least: int | None = None) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return render(self.seed, index, self.size, self.split, self.scene)


# ---------------------------------------------------------------------- pictures from a folder


class Item(NamedTuple):
    """One annotated picture, not yet read."""

    path: Path
    words: list[str]
    quads: np.ndarray | None  # (words, 4, 2) pixels
    left_out: tuple[str, ...] = ()  # what of its annotation is not here
    ignored: np.ndarray | None = None  # (regions, 4, 2) pixels


class Folder(Source):
    """Annotated pictures on disk; a subclass lists them all, one in ten is held out."""

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        items = self.list_items()
        if len(items) < 2:
            raise ValueError(f"{root}: got {len(items)} annotated pictures, wanted 2 or more")
        held = [self.held_out(k, item) for k, item in enumerate(items)]
        held[-1] |= not any(held)
        wanted = split == "heldout"
        self.items = [item for item, out in zip(items, held, strict=True) if out == wanted]
        self.notes = Counter(reason for item in self.items for reason in item.left_out)

    @abstractmethod
    def list_items(self) -> list[Item]:
        """All annotated pictures, in an order that only the files decide."""

    def held_out(self, position: int, item: Item) -> bool:
        return position % 10 == 9

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int, least: int | None = None) -> Sample:
        path, words, quads, _, ignored = self.items[index]
        image, scale = open_image(path, least)
        quads, ignored = (x if x is None else x * np.float32(scale) for x in (quads, ignored))
        return Sample(np.array(image), words, quads, ignored=ignored)

    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        return np.array([count_learnable(i.words, alphabet, notes) > 0 for i in self.items])

    def characters(self) -> Counter[str]:
        words = (word for item in self.items for word in item.words)
        return Counter(char for word in words for char in vlpt.nfc(word))

    def name(self, index: int) -> str:
        return str(self.items[index].path)


def open_image(path: Path, least: int | None = None) -> tuple[Image.Image, float]:
    """A picture in RGB and its scale: 1, or for a JPEG 1/2, 1/4 or 1/8 if that leaves `least`
    pixels a side. So it is decoded faster.
    """
    try:
        with Image.open(path) as image:
            full, drafted = image.width, image.draft(None, (least, least)) if least else None
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # as every viewer shows it, and quads are
            scale = drafted[1][2] / full if drafted else 1.0
            return (image if image.mode == "RGB" else image.convert("RGB")), scale
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def need(path: Path, wanted: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; wanted\n{wanted}")
    return path


def read_lines(path: Path, wanted: str) -> list[str]:
    """The lines of a UTF-8 file. Raises: OSError, ValueError; both name the file."""
    if need(path, wanted).is_dir():
        raise ValueError(f"{path}: a folder; wanted\n{wanted}")
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # JSON may hold other kinds of breaks
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    return lines if lines[-1] else lines[:-1]


@np.errstate(over="ignore")
def to_quads(corners: object, count: int) -> np.ndarray:
    """Numbers, or text of numbers, as (count, 4, 2) float32 pixels. Raises: ValueError etc."""
    quads = np.array(corners, np.float32).reshape(count, 4, 2)
    if not np.isfinite(quads).all():
        raise ValueError("a corner is not a finite number")
    return quads


class ICDAR2015(Folder):
    """ICDAR 2015 Incidental Scene Text, training split; img_801 and later are held out."""

    TREE = """    ROOT/ch4_training_images/img_1.jpg
    ROOT/ch4_training_localization_transcription_gt/gt_img_1.txt"""

    def list_items(self) -> list[Item]:
        images = need(self.root / "ch4_training_images", self.TREE)
        labels = need(self.root / "ch4_training_localization_transcription_gt", self.TREE)
        paths = sorted(images.glob("img_*.jpg"), key=self.number)
        return [self.read_item(path, labels / f"gt_{path.stem}.txt") for path in paths]

    def held_out(self, position: int, item: Item) -> bool:
        return self.number(item.path) > 800

    def number(self, path: Path) -> int:
        digits = path.stem.removeprefix("img_")
        if not digits.isdecimal():
            raise ValueError(f"{path}: got this name, wanted img_NUMBER.jpg")
        return int(digits)

    def read_item(self, image: Path, label: Path) -> Item:
        words, quads, ignored = [], [], []
        for number, line in enumerate(read_lines(label, self.TREE), 1):
            fields = line.split(",", 8)  # a transcription may hold commas
            try:
                quad, word = to_quads(fields[:8], 1)[0], fields[8]
            except (ValueError, IndexError):
                wanted = "x1,y1,x2,y2,x3,y3,x4,y4,text"
                raise ValueError(f"{label}:{number}: got {line!r}, wanted {wanted}") from None
            if word == "###":
                ignored.append(quad)
            else:
                words.append(word)
                quads.append(quad)
        left_out = ("words marked unreadable",) * len(ignored)
        unread = to_quads(ignored, len(ignored))
        return Item(image, words, to_quads(quads, len(words)), left_out, unread)


class JsonLines(Folder):
    """One JSON object a line; image paths are relative to the file."""

    def list_items(self) -> list[Item]:
        lines = '    a file of lines like {"image": path, "words": [...], "quads": optional}'
        items = []
        for number, line in enumerate(read_lines(self.root, lines), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                words, quads = entry["words"], entry.get("quads")
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise TypeError("words is not a list of strings")
                "".join([entry["image"], *words]).encode()  # or an error: half a surrogate pair
                quads = quads if quads is None else to_quads(quads, len(words))
                items.append(Item(self.root.parent / entry["image"], words, quads))
            except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
                wanted = '{"image": path, "words": [text], "quads": [[[x, y] * 4]] or nothing}'
                where = f"{self.root}:{number}"
                raise ValueError(f"{where}: got {line[:80]!r} ({error}), wanted {wanted}") from None
        return items


# -------------------------------------------------------------------------------- SynthText


class Index(NamedTuple):
    """What is needed of SynthText's gt.mat, as one file of flat arrays; training pictures first.

    A picture's name, words and quads lie between its row of `ends` and the next one. The file is
    mapped, so processes share what they touch of it; quads, the bulk, are read when asked for.
    """

    path: Path
    head: dict[str, int]  # by the names in HEAD; in the file (words, 4, 2) float32 pixels follow
    ends: np.ndarray  # (pictures + 1, 3) int64: bytes of names, bytes of text, quads so far
    names: np.ndarray  # (bytes,) uint8, UTF-8
    text: np.ndarray  # (bytes,) uint8, UTF-8; each word in NFC, cut to L, with a line break after


MAGIC = int.from_bytes(b"vlpt-ix1", "little")  # the last character is the format's version
HEAD = ("magic", "gt_bytes", "gt_mtime_ns", "pictures", "train", "quads", "names", "text",
        "mismatches_train", "mismatches_heldout", "cut_train", "cut_heldout")  # fmt: skip


def open_index(root: Path) -> Index:
    """Map the index of root/gt.mat; build it first if there is none, or one of another gt.mat.

    Raises: FileNotFoundError; ValueError if gt.mat is not SynthText's or no index can be written.
    """
    gt = need(root / "gt.mat", SynthText.TREE)
    key, places = (MAGIC, gt.stat().st_size, gt.stat().st_mtime_ns), index_places(gt)
    for path in places:
        with suppress(OSError, ValueError):
            return read_index(path, key)
    start, arrays, failures = time.perf_counter(), build_index(gt, key), []
    for path in places:
        try:
            write_index(path, arrays)
            index = read_index(path, key)
        except (OSError, ValueError) as error:
            failures.append(str(error))
        else:
            print(f"{path}: index written, once, in {time.perf_counter() - start:.0f} s")
            return index
    raise ValueError(f"{gt}: its index can be written nowhere: {'; '.join(failures)}")


def index_places(gt: Path) -> tuple[Path, Path]:
    """Where the index of gt.mat may be: beside it, or in a cache if that cannot be written."""
    cache = Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlpt"
    return gt.with_name("gt.mat.index"), cache / f"{zlib.crc32(bytes(gt.resolve())):08x}.index"


def read_index(path: Path, key: tuple[int, int, int]) -> Index:
    """Map an index file. Raises: OSError, ValueError if it is not whole or of another gt.mat."""
    values = np.fromfile(path, np.int64, len(HEAD)).tolist()
    head, data = dict(zip(HEAD, values, strict=True)), np.memmap(path, np.uint8, "r")
    sizes = [8 * len(HEAD), 32 * head["quads"], 24 * (head["pictures"] + 1), head["names"],
             head["text"]]  # fmt: skip
    if tuple(values[:3]) == key and min(sizes) >= 0 and sum(sizes) == len(data):
        _, _, ends, names, text = np.split(data, np.cumsum(sizes)[:-1])
        ends = ends.view(np.int64).reshape(-1, 3)
        last = [head["names"], head["text"], head["quads"]]
        if not ends[0].any() and ends[-1].tolist() == last and (np.diff(ends, axis=0) >= 0).all():
            return Index(path, head, ends, names, text)
    raise ValueError(f"{path}: not whole, or of another gt.mat")


def write_index(path: Path, arrays: Iterable[np.ndarray]) -> None:
    """Write arrays one after the other, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            for array in arrays:
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def build_index(gt: Path, key: tuple[int, int, int]) -> list[np.ndarray]:
    """Read gt.mat into the arrays of its index; of the published size, with 3.3 GB of memory."""
    from scipy.io import loadmat
    from tqdm import tqdm

    count, names, texts, boxes = Counter[str](), [], [], [np.empty((0, 4, 2), np.float32)]
    try:
        table = loadmat(gt, variable_names=("imnames", "txt", "wordBB"))
        columns = np.concatenate([table[key] for key in ("imnames", "txt", "wordBB")])
        held = np.arange(columns.shape[1]) % 10 == 9
        held[-1] |= not held.any()
        for k in tqdm(np.argsort(held, kind="stable"), str(gt), unit="picture", disable=None):
            name, text, quads = columns[:, k]
            words, half = vlpt.nfc(" ".join(map(str, text.flat))).split(), SPLITS[int(held[k])]
            quads = np.asarray(quads, np.float32).reshape(2, 4, -1).transpose(2, 1, 0)
            if len(quads) != len(words):  # a few of the 858,750 disagree
                count[f"mismatches_{half}"] += 1
                continue
            count[half] += 1
            count[f"cut_{half}"] += sum(len(word) > vlpt.CHARS for word in words)
            names.append(str(name[0]).encode())
            texts.append("".join(word[: vlpt.CHARS] + "\n" for word in words).encode())
            boxes.append(quads)
    except Exception as error:  # scipy raises whatever it stumbles over
        raise ValueError(
            f"{gt}: not SynthText's gt.mat ({error!r}), wanted\n{SynthText.TREE}"
        ) from None
    if min(count["train"], count["heldout"]) < 1:
        raise ValueError(f"{gt}: got {len(names)} annotated pictures, wanted some in both halves")
    lengths = [(len(n), len(t), len(b)) for n, t, b in zip(names, texts, boxes[1:], strict=True)]
    ends = np.cumsum([(0, 0, 0), *lengths], axis=0, dtype=np.int64)
    count |= dict(zip(("names", "text", "quads"), ends[-1].tolist(), strict=True))
    count |= {"pictures": len(names)} | dict(zip(HEAD, key, strict=False))
    flat = (np.frombuffer(b"".join(parts), np.uint8) for parts in (names, texts))
    return [np.array([count[name] for name in HEAD]), np.concatenate(boxes), ends, *flat]


class SynthText(Source):
    """SynthText's own layout: gt.mat beside the folders of pictures that it names.

    Words are in NFC and cut to L; quads are clipped to their picture, and words of which at least
    half lies outside it are left out.
    """

    TREE = """    ROOT/gt.mat with imnames, txt and wordBB, and its pictures as
    ROOT/8/ballet_106_0.jpg or ROOT/all_images/8/ballet_106_0.jpg"""

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        self.split, self.table = split, open_index(self.root)
        head, train = self.table.head, self.table.head["train"]
        self.rows = range(train) if split == "train" else range(train, head["pictures"])
        self.notes = Counter({
            "pictures with another number of quads than words": head[f"mismatches_{split}"],
            CUT: head[f"cut_{split}"],
        })  # fmt: skip
        first = [self.name(k) for k in range(min(100, len(self)))]
        folders = [folder for folder in (self.root, self.root / "all_images")
                   if any((folder / name).is_file() for name in first)]  # fmt: skip
        if not folders:
            missing = f"{self.root / first[0]}: not found, nor any of the {len(first)} first ones"
            raise FileNotFoundError(f"{missing}; wanted\n{self.TREE}")
        self.folder = folders[0]

    def __reduce__(self) -> tuple[type[SynthText], tuple[Path, str]]:
        return SynthText, (self.root, self.split)  # a worker maps the file itself

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        start, stop = self.table.ends[self.rows[index] :][:2, 0]
        return self.table.names[start:stop].tobytes().decode()

    def read(self, index: int, least: int | None = None) -> Sample:
        image, scale = open_image(self.folder / self.name(index), least)
        (_, start, first), (_, stop, last) = self.table.ends[self.rows[index] :][:2].tolist()
        words = self.table.text[start:stop].tobytes().decode().split("\n")[:-1]
        at, count = 8 * len(HEAD) + 32 * first, 8 * (last - first)
        quads = np.fromfile(self.table.path, np.float32, count, offset=at).reshape(-1, 4, 2)
        quads, inside = clip_quads(quads * np.float32(scale), *image.size)
        words = [word for word, kept in zip(words, inside, strict=True) if kept]
        return Sample(np.array(image), words, quads[inside], int((~inside).sum()))

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """10,000 pictures at a time: the code points of their words, each with a line break
        after, and the numbers of words up to each picture, from 0.
        """
        for start in range(0, len(self), 10_000):
            stop = min(start + 10_000, len(self))
            ends = self.table.ends[self.rows[start] : self.rows[stop - 1] + 2]
            text = self.table.text[ends[0, 1] : ends[-1, 1]].tobytes().decode()
            yield np.frombuffer(text.encode("utf-32-le"), np.uint32), ends[:, 2] - ends[0, 2]

    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        spelled, found = np.zeros(sys.maxunicode + 1, np.int32), [np.empty(0, bool)]
        spelled[[ord(char) for char in alphabet.index if len(char) == 1]] = 1
        for codes, words in self.chunks():
            breaks = np.flatnonzero(codes == ord("\n"))
            known = np.diff(np.cumsum(spelled[codes])[breaks], prepend=0)
            lengths = np.diff(breaks, prepend=-1) - 1
            notes[UNKNOWN] += int((known == 0).sum())
            notes[PARTLY] += int(((known > 0) & (known < lengths)).sum())
            found.append(np.diff(np.cumsum(np.append(0, known > 0))[words]) > 0)
        return np.concatenate(found)

    def characters(self) -> Counter[str]:
        count = np.zeros(sys.maxunicode + 1, np.int64)
        for codes, _ in self.chunks():
            count += np.bincount(codes, minlength=len(count))
        count[ord("\n")] = 0
        return Counter({chr(code): int(count[code]) for code in np.flatnonzero(count)})


def clip_quads(quads: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Move the corners of (words, 4, 2) quads into a picture: the quads, and which of them keep
    more than half of their area.
    """
    clipped = quads.clip(0, np.array([width, height], np.float32))
    x, y = np.moveaxis(np.stack([quads, clipped]), -1, 0)
    area = abs((x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(-1)) / 2
    return clipped, area[1] > area[0] / 2


def write_synthtext(
    root: str | Path, count: int, seed: int, size: int = 256, scene: Scene = Scene(),
    distinct: int | None = None,
) -> None:  # fmt: skip
    """Write `count` rendered pictures in SynthText's layout, for tests and trials.

    With `distinct`, only so many are rendered; the others are hard links with the same annotation,
    except that one in 1,000 has its quads moved half a picture aside and one in 10,000 lacks a
    line of words, as such things happen in the published file.
    """
    from scipy.io import savemat
    from tqdm import tqdm

    root, samples = Path(root), []
    table = {key: np.empty((1, count), object) for key in ("imnames", "wordBB", "charBB", "txt")}
    for index in tqdm(range(count), f"{root}/", unit="picture", disable=None):
        name = f"{1 + index // 4000}/picture_{index}.jpg"
        if index % 4000 == 0:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        if index < (distinct or count):
            sample = render(seed, index, size, scene=scene)
            Image.fromarray(sample.image).save(root / name, quality=95)
            assert sample.quads is not None  # for rendered pictures have them
            parts = map(split_quad, sample.quads, map(len, sample.words))
            quads = sample.quads, np.concatenate(list(parts))
            boxes = [q.T if len(q) > 1 else q[0].T for q in quads]
            lines = ["\n".join(sample.words[k : k + 3]) for k in range(0, len(sample.words), 3)]
            samples.append((root / name, *boxes, np.array(lines)))
        path, words, chars, text = samples[index % len(samples)]
        if index >= len(samples):
            os.link(path, root / name)
            words = words + np.float32(size / 2) if index % 1_000 == 500 else words
            text = text[1:] if index % 10_000 == 5_001 else text
        row = np.array([name]), words, chars, text
        for key, value in zip(table, row, strict=True):
            table[key][0, index] = value
    savemat(root / "gt.mat", table)


def split_quad(quad: np.ndarray, parts: int) -> np.ndarray:
    """Cut a quad into (parts, 4, 2) from left to right, one for each letter."""
    step = np.linspace(0, 1, parts + 1, dtype=np.float32)[:, None]
    top, bottom = quad[0] + step * (quad[1] - quad[0]), quad[3] + step * (quad[2] - quad[3])
    return np.stack([top[:-1], top[1:], bottom[1:], bottom[:-1]], 1)


def fake_synthtext(root: Path, images: int) -> None:
    """Write a stand-in for SynthText in a new folder: its layout, and with 858,750 its size.

    Raises: ValueError if the folder is not empty or the disk too full.
    """
    if images < 2:
        raise ValueError(f"--images: got {images}, wanted at least 2")
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root}: not empty; wanted a new folder")
    needed, free = 3_000 * images + 2 * 10**7, shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(f"{root}: got {free / 1e9:.1f} GB of free disk, wanted {needed / 1e9:.1f}")
    scene = Scene(words=(4, 13), height=(0.04, 0.08))  # published: 8.5 words a picture
    write_synthtext(root, images, 0, 512, scene, distinct=min(images, 128))


# ------------------------------------------------------------------------------- any source


def open_source(
    spec: str, split: str, size: int, count: int, seed: int = 0, scene: Scene = Scene()
) -> Source:
    """Open "synth", "synthtext:PATH", "icdar2015:PATH" or "jsonl:PATH".

    `size`, `count`, `seed` and `scene` matter for "synth" only.
    """
    kind, _, path = spec.partition(":")
    readers: dict[str, Callable[[str, str], Source]]
    readers = {"synthtext": SynthText, "icdar2015": ICDAR2015, "jsonl": JsonLines}
    if spec == "synth":
        return Rendered(size, count, seed, split, scene)
    if kind not in readers or not path:
        wanted = "synth, synthtext:PATH, icdar2015:PATH, jsonl:PATH"
        raise ValueError(f"data: got {spec!r}, wanted {wanted}")
    return readers[kind](path, split)


# ------------------------------------------------------------------------------ what the model eats


Drawn = tuple[Tensor, Tensor, int] | str  # an item of `Pretraining`


class Batch(NamedTuple):
    """Pictures and the words drawn for them, before masking."""

    images: Tensor  # (B, 3, size, size) uint8
    ids: Tensor  # (B, L, N) int64
    skipped: list[str]  # why pictures of this batch are missing
    outside: int = 0  # words of this batch that were left out, see `Sample`


def learnable(word: str, alphabet: vlpt.Alphabet) -> bool:
    """Whether the alphabet knows one of the word's first L characters, which can be masked then."""
    return bool(word.strip()) and not alphabet.index.keys().isdisjoint(vlpt.nfc(word)[: vlpt.CHARS])


def count_learnable(words: Sequence[str], alphabet: vlpt.Alphabet, notes: Counter[str]) -> int:
    """How many words can be learned; `notes` counts those that cannot, or not as they are."""
    found = 0
    for word in words:
        spelled = vlpt.nfc(word)
        if learnable(word, alphabet):
            found += 1
            notes[PARTLY] += not alphabet.index.keys() >= set(spelled[: vlpt.CHARS])
            notes[CUT] += len(spelled) > vlpt.CHARS
        else:
            notes[UNKNOWN if word.strip() else EMPTY] += 1
    return found


def read_alphabet(spec: str, *sources: Source) -> str:
    """The characters of "ascii", of "data" (the sources', most frequent first, at most MOST), or
    of a UTF-8 text file (in its order, without blanks and repetitions).

    Raises: ValueError, FileNotFoundError.
    """
    if spec == "ascii":
        return vlpt.PRINTABLE
    if spec == "data":
        counts = sum((source.characters() for source in sources), Counter[str]())
        chars = sorted(counts, key=lambda char: (-counts[char], char))
    else:
        lines = read_lines(Path(spec), "    ascii, data, or a UTF-8 file of characters to learn")
        chars = list(dict.fromkeys(vlpt.nfc("\n".join(lines))))
    chars = [char for char in chars if char.isprintable() and char != " "]
    if not chars:
        name = sources[0].root if spec == "data" else spec
        raise ValueError(f"alphabet: {name} has no printable character")
    return "".join(chars[:MOST] if spec == "data" else chars)


class Pretraining(torch.utils.data.Dataset[Drawn]):
    """An endless run over a source: item k is picture k mod length of a shuffled epoch.

    Each epoch draws up to N words of every picture anew. Everything follows from (seed, k), so
    the number of workers changes nothing. Pictures without a learnable word are left out; `notes`
    counts them, and the words that were left out or cut.

    Args:
        subset: how many pictures to use, or None for all; a smaller subset is part of a larger.
        annotated: 0..1, the share of its learnable words that each picture keeps, at least one;
            a smaller share is part of a larger.
        augment: whether pictures are changed a little each time, see `augment`.
    Raises: ValueError if there are no or not so many pictures, or for another share.
    """

    def __init__(
        self, source: Source, alphabet: vlpt.Alphabet, size: int, seed: int,
        subset: int | None = None, annotated: float = 1.0, augment: bool = False,
    ) -> None:  # fmt: skip
        self.augment = augment
        self.source, self.alphabet, self.size, self.seed = source, alphabet, size, seed
        self.annotated, self.notes = annotated, Counter(source.notes)
        found = source.learnable(alphabet, self.notes)
        self.indices = np.flatnonzero(found).astype(np.int32)
        self.notes["pictures without a usable word"] += len(found) - len(self.indices)
        self.notes = +self.notes  # without zeros
        if not len(self.indices):
            raise ValueError(f"{source.root}: no picture has a word that the alphabet can spell")
        if subset is not None:
            if not 1 <= subset <= len(self.indices):
                raise ValueError(f"subset: got {subset}, wanted 1 to {len(self.indices)} pictures")
            order = np.random.default_rng([seed, 0, 0, 1]).permutation(len(self.indices))
            self.indices = np.sort(self.indices[order[:subset]])
        if not 0 < annotated <= 1:
            raise ValueError(f"annotated: got {annotated}, wanted above 0 and at most 1")

    def index(self, k: int) -> int:
        """The source's number of the picture of item k."""
        epoch, position = divmod(k, len(self.indices))
        return int(self.indices[shuffled(len(self.indices), self.seed, epoch)[position]])

    def __getitem__(self, k: int) -> Drawn:
        """Picture (3, size, size) uint8, ids (L, N), words outside; or why it cannot be had."""
        index = self.index(k)
        try:
            sample = self.source.read(index, self.size)
        except ValueError as error:
            return str(error)
        at = [j for j, word in enumerate(sample.words) if learnable(word, self.alphabet)]
        if not at:
            return f"{self.source.root}: picture {index} has no learnable word inside it"
        if self.annotated < 1:
            order = np.random.default_rng([self.seed, index, 0, 2]).permutation(len(at))
            at = [at[j] for j in order[: max(1, round(self.annotated * len(at)))]]
        rng = np.random.default_rng([self.seed, k])
        drawn = [at[j] for j in rng.permutation(len(at))[: vlpt.WORDS]]
        pixels = torch.from_numpy(sample.image).permute(2, 0, 1)
        if self.augment:
            quads = None if sample.quads is None else sample.quads[drawn]
            pixels, _ = augment(pixels, quads, self.size, np.random.default_rng([self.seed, k, 3]))
        else:
            pixels = stretch(pixels, self.size)
        return pixels, self.alphabet.encode([sample.words[j] for j in drawn]), sample.outside


def stretch(pixels: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 as a square (3, size, size), with antialiasing."""
    pixels = F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)
    return pixels[0].contiguous()


def augment(
    pixels: Tensor, quads: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray | None]:
    """A picture (3, H, W) as a square of `size`, varied, never mirrored; its quads with it.

    Brightness, contrast and colour change by up to 30 %. Where quads (words, 4, 2) are given, up to
    15 % is cut off each side and the rest is turned by up to 5 degrees, but they stay in view. The
    released code stretches as well; it cuts 0 to 5 % of the area off, words or not, and no more.
    """
    angle = 0.0
    if quads is not None:
        whole = np.array(pixels.shape[:0:-1])
        quads = quads.clip(0, whole)
        room = np.stack([quads.min((0, 1)), whole - quads.max((0, 1))])
        cut = rng.uniform(0, np.minimum(room, 0.15 * whole)).astype(int)
        (left, top), (right, bottom) = cut[0], whole - cut[1]
        pixels = pixels[:, top:bottom, left:right]
        quads = (quads - cut[0]) * size / (right - left, bottom - top)
        angle = np.deg2rad(rng.uniform(-5, 5))
        cos, sin = np.cos(angle), np.sin(angle)
        turned = (quads - size / 2) @ [[cos, -sin], [sin, cos]] + size / 2
        inside = turned.min() >= 0 and turned.max() <= size
        quads, angle = (turned, angle) if inside else (quads, 0.0)
    pixels = stretch(pixels, size).float()
    mean = pixels.mean((1, 2)).round()
    bright, contrast, colour = rng.uniform(0.7, 1.3, 3)
    level = (1 - contrast) * bright * luminance(mean.tolist()) + 0.5  # the half is for rounding
    if angle:
        pixels[:, [0, -1]] = pixels[:, :, [0, -1]] = mean[:, None, None]  # seen beyond the edges
        at = torch.arange(1 - size, size, 2)[:, None] / size
        across, down = (at * torch.tensor(row).float() for row in ((cos, sin), (-sin, cos)))
    done = torch.empty((3, size, size), dtype=torch.uint8)
    for k in range(0, size, 64):  # strips that fit into the processor's cache
        strip = pixels[:, k : k + 64]
        if angle:
            grid = (across + down[k : k + 64, None])[None]
            strip = F.grid_sample(pixels[None], grid, "bilinear", "border", align_corners=False)[0]
        gray = luminance(strip.unbind()) * ((1 - colour) * contrast * bright) + level
        strip.mul_(colour * contrast * bright).add_(gray)
        done[:, k : k + 64] = strip.clamp_(0, 255)
    return done, quads


@lru_cache(maxsize=2)  # of 858,750 pictures, 7 MB each in every worker
def shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def collate(items: list[Drawn]) -> Batch:
    """Stack what could be read; the batch may be smaller, or empty, and says why."""
    good = [item for item in items if not isinstance(item, str)]
    skipped = [item for item in items if isinstance(item, str)]
    if not good:
        return Batch(torch.empty(0), torch.empty(0), skipped)
    images, ids, outside = zip(*good, strict=True)
    return Batch(torch.stack(images), torch.stack(ids), skipped, sum(outside))


# ------------------------------------------------------------------- what a source holds and lacks


def check(spec: str) -> list[str]:
    """Read a source through as for training, with its own alphabet: the lines of a report.

    Raises: ValueError or OSError if it cannot be trained on.
    """
    from tqdm import tqdm

    halves = [open_source(spec, split, 256, 200) for split in SPLITS]
    alphabet = vlpt.Alphabet(read_alphabet("data", *halves))
    words, lacks, worst = Counter[str](), Counter[str](), []
    for split, source, least in zip(SPLITS, halves, (1, 2), strict=True):
        lacks += Pretraining(source, alphabet, 32, 0).notes
        usable = 0
        for index in tqdm(range(len(source)), split, unit="picture", disable=None, leave=False):
            try:
                sample = source[index]
            except ValueError as error:
                lacks["pictures that cannot be read"] += 1
                worst.append((-math.inf, str(error)))
                continue
            words.update(sample.words)
            faults = Counter({OUTSIDE: sample.outside})
            if sample.quads is not None:
                _, inside = clip_quads(sample.quads, *sample.image.shape[1::-1])
                faults[OUTSIDE] += int((~inside).sum())
            lacks[OUTSIDE] += faults[OUTSIDE]
            found = count_learnable(sample.words, alphabet, faults) > 0
            usable += found
            del faults[PARTLY]  # no fault of a picture
            faults += Counter({"pictures without a usable word": not found})
            if faults:
                listed = ", ".join(f"{n:d} {what}" for what, n in faults.items())
                worst.append((-faults.total(), f"{source.name(index)}: {listed}"))
        if usable < least:
            raise ValueError(f"{source.root}: got {usable} usable {split} pictures, wanted {least}")
    chars = Counter(char for word in words.elements() for char in vlpt.nfc(word))
    shown = [f"{char} {n:,}" for char, n in chars.most_common() if char in alphabet.index]
    more, longest = len(shown) - 80, sorted(words, key=lambda word: (-len(word), word))
    held = len(halves[1])
    return [
        f"pictures  {len(halves[0]) + held:,}, {held:,} of them held out",
        f"words     {words.total():,}, {len(words):,} different ones",
        f"alphabet  {len(shown):,} characters: {'  '.join(shown[:80])}"
        + f"  and {more:,} more" * (more > 0),
        "longest   " + "  ".join(word[:60] for word in longest[:10]),
        *(f"lacking   {count:,} {what}" for what, count in (+lacks).most_common()),
        *(f"worst     {fault}" for _, fault in sorted(worst)[:10]),
    ]


# ------------------------------------------------------------------------------------ contact sheet


def contact_sheet(source: Source, count: int, tile: int = 256) -> Image.Image:
    """The first pictures of a source with their quads, a dot at each first corner, words below."""
    count, gap, strip, columns = min(count, len(source)), 6, 22, 1536 // tile
    tiles = []
    for k in range(count):
        sample = source[k]
        image = Image.fromarray(sample.image)
        scale = tile / image.width
        image = image.resize((tile, round(image.height * scale)), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for quad in sample.quads if sample.quads is not None else ():
            draw.polygon((quad * scale).ravel().tolist(), outline=(255, 0, 80), width=1)
            x, y = (quad[0] * scale).tolist()
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 220, 0))
        tiles.append((image, "  ".join(sample.words)[: tile // 9]))
    rows = [tiles[k : k + columns] for k in range(0, count, columns)]
    heights = [max(image.height for image, _ in row) + strip + gap for row in rows]
    sheet = Image.new("RGB", (min(columns, count) * (tile + gap), sum(heights)), "white")
    for row, bottom in zip(rows, np.cumsum(heights).tolist(), strict=True):
        for k, (image, caption) in enumerate(row):
            left, top = k * (tile + gap), bottom - strip - gap
            sheet.paste(image, (left, top - image.height))
            ImageDraw.Draw(sheet).text((left + 2, top + 2), caption, "black", load_font(None, 15))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw a contact sheet of a source: pictures, quads (dot: first corner), words.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sheet", default=argparse.SUPPRESS, metavar="FILE.png", help="picture to write")
    add("--data", default="synth", help="synth, synthtext:PATH, icdar2015:PATH or jsonl:PATH")
    add("--split", choices=SPLITS, default="train", help="which half")
    add("--count", type=int, default=24, help="pictures on the sheet")
    add("--size", type=int, default=256, help="side of rendered pictures, pixels")
    add("--seed", type=int, default=0, help="of rendered pictures")
    add("--digits", action="store_true", help="draw the demo's pictures (with --size 64)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="instead of a sheet")
    text = "read a source through; report its pictures, words, characters, and what it lacks"
    reader = commands.add_parser("check", help=text, description=text)
    reader.add_argument("source", metavar="SOURCE", help="as --data")
    text = "write a stand-in for SynthText: gt.mat, and links to a few rendered pictures"
    fake = commands.add_parser("fake-synthtext", help=text, description=text)
    fake.add_argument("folder", metavar="DIR", type=Path, help="where, a new folder")
    fake.add_argument("--images", type=int, default=858_750, help="how many; published: 858750")
    args = parser.parse_args()
    try:
        if args.command == "fake-synthtext":
            fake_synthtext(args.folder, args.images)
            print(f"{args.folder}: {args.images:,} pictures in SynthText's layout")
        elif args.command == "check":
            if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal without some characters
                sys.stdout.reconfigure(errors="backslashreplace")
            for line in check(args.source):
                print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
        elif "sheet" in args:
            draw_sheet(args)
        else:
            parser.error("wanted --sheet FILE.png or a command")
    except (ValueError, OSError) as error:
        sys.exit(f"data_stub.py: error: {error}")


def draw_sheet(args: argparse.Namespace) -> None:
    scene = DIGITS if args.digits else Scene()
    if args.count < 1 or args.size < 32 or args.seed < 0:
        raise ValueError("--count must be at least 1, --size at least 32, --seed at least 0")
    if Path(args.sheet).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--sheet: got {args.sheet!r}, wanted a name that ends in .png or .jpg")
    source = open_source(args.data, args.split, args.size, args.count, args.seed, scene)
    sheet = contact_sheet(source, args.count, tile=256 if args.data == "synth" else 384)
    sheet.save(args.sheet)
    print(f"{args.sheet}: {min(args.count, len(source))} pictures of {args.data}, {args.split}")


if __name__ == "__main__":
    main()
