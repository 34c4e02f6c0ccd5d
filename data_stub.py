"""Pictures with words for VLPT: an embedded renderer, and readers for three layouts of real data.

Every source is a sequence of `Sample`s: an RGB picture, its words, and a quadrilateral around
each word (or None where the layout has none; pre-training never looks at them).

    Rendered(size, count, seed)   draws scene-like pictures; no download, any number of them
    SynthText(root)               gt.mat beside the folders of images
    ICDAR2015(root)               the training split; img_801 .. img_1000 are held out
    JsonLines(path)               {"image": "a.jpg", "words": ["EXIT"], "quads": [[[x, y] * 4]]}

Each has a "train" and a "heldout" half. In rendered pictures the halves share no word; in the
others they share no picture. `Pretraining` turns a source into what the model eats: N words an
image, drawn anew each epoch, as ids. `python data_stub.py --sheet sheet.png` shows a source.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

import vlpt

SPLITS = ("train", "heldout")
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
def load_font(path: str | None, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, pixels) if path else ImageFont.load_default(pixels)


def split_of(word: str) -> str:
    """The half that a rendered word belongs to: one word in ten is held out, whatever its case."""
    return SPLITS[zlib.crc32(word.lower().encode()) % 10 == 0]


def draw_word(rng: np.random.Generator, scene: Scene, split: str) -> str:
    """Draw a word of one of the scene's kinds that belongs to the split."""
    letters = [c for c in scene.alphabet if c in string.ascii_lowercase] or list(scene.alphabet)
    digits = [c for c in scene.alphabet if c.isdigit()] or list(scene.alphabet)
    while True:
        kind = scene.kinds[rng.integers(len(scene.kinds))]
        length = int(rng.integers(scene.chars[0], scene.chars[1] + 1))
        if kind == "list":
            word = WORDS[rng.integers(len(WORDS))]
        elif kind == "pseudo":  # consonants and vowels in turn
            halves = [c for c in letters if c not in "aeiou"], [c for c in letters if c in "aeiou"]
            start = rng.integers(2)
            word = "".join(rng.choice(halves[(start + k) % 2] or letters) for k in range(length))
        else:
            word = "".join(rng.choice(digits if kind == "number" else list(scene.alphabet), length))
        if kind in ("list", "pseudo"):
            word = (word, word.upper(), word.title())[rng.integers(3)]
        if set(word) <= set(scene.alphabet) and split_of(word) == split:
            return word


def merge(planes: Iterable[np.ndarray]) -> Image.Image:
    """An RGB picture from three float planes of 0..255; one by one is faster than (H, W, 3)."""
    bands = (Image.fromarray(plane.clip(0, 255).astype(np.uint8)) for plane in planes)
    return Image.merge("RGB", tuple(bands))


def background(rng: np.random.Generator, size: int, clutter: float) -> Image.Image:
    """A gradient with texture that is mostly luminance noise, and a few shapes."""
    base = rng.uniform(30, 225, 3) * 0.5 + rng.uniform(30, 225) * 0.5
    slope, tint = rng.normal(0, 30 * clutter, (2, 3)), rng.uniform(0.85, 1.15, 3)
    texture = np.zeros((size, size), np.float32)
    for cells in (4, 16, size // 2):
        noise = rng.standard_normal((cells, cells), np.float32)
        grown = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        texture += np.asarray(grown) * np.float32(rng.uniform(2, 16) * clutter)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    image = merge(
        texture * np.float32(tint[c])
        + (ramp * np.float32(slope[0, c]))[:, None]
        + (ramp * np.float32(slope[1, c]) + np.float32(base[c]))
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
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = quad
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    dx1, dy1, dx2, dy2 = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    det = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / det, (dx1 * sy - sx * dy1) / det
    unit = np.array([[x1 - x0 + g * x1, x3 - x0 + h * x3, x0],
                     [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1]])  # fmt: skip
    return unit / np.array([width, height, 1])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (P, 2) points by a homography."""
    mapped = np.c_[points, np.ones(len(points))] @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def box_corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def find_room(
    rng: np.random.Generator, shape: tuple[int, int], scene: Scene, taken: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """A tilted quad of about a (width, height) box on free ground, and its scale; None if full."""
    size = len(taken)
    scale = min(1.0, 0.95 * size / shape[0], 0.95 * size / shape[1])
    for _ in range(12):
        quad = box_corners(-0.5, -0.5, 0.5, 0.5) * (1 + rng.uniform(-0.1, 0.1, (4, 2)))
        quad *= np.multiply(shape, scale)
        angle = np.deg2rad(np.clip(rng.normal(0, scene.tilt / 2), -scene.tilt, scene.tilt))
        quad = quad @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        room = size - np.ptp(quad, axis=0)
        if room.min() > 0:
            quad += rng.uniform(0, room) - quad.min(0)
            (x0, y0), (x1, y1) = bounds(quad)
            if not taken[y0:y1, x0:x1].any():
                return quad, scale
        scale *= 0.93
    return None


def bounds(quad: np.ndarray) -> np.ndarray:
    """The whole-pixel box ((x0, y0), (x1, y1)) around a quad."""
    return np.array([np.floor(quad.min(0)), np.ceil(quad.max(0))]).astype(int)


def contrasting(rng: np.random.Generator, ground: float) -> tuple[int, int, int]:
    """A random colour whose luminance is far from the ground's."""
    for _ in range(8):
        color = rng.integers(0, 256, 3)
        if abs(luminance(color) - ground) > 100:
            return tuple(color.tolist())
    return (0, 0, 0) if ground > 127 else (255, 255, 255)


def paint(
    rng: np.random.Generator,
    word: str,
    font: ImageFont.FreeTypeFont,
    margin: tuple[int, int],
    ground: float,
    plated: bool,
) -> tuple[Image.Image, Image.Image]:
    """A word with plate, shadow, outline (RGBA), and its ink alone (L), for a ground so light."""
    (pad, stroke), (left, top, right, bottom) = margin, font.getbbox(word)
    shape, at = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad), (pad - left, pad - top)
    patch, ink = Image.new("RGBA", shape), Image.new("L", shape)
    draw = ImageDraw.Draw(patch)
    if plated:
        plate = tuple(rng.integers(0, 256, 3).tolist())
        ground = float(luminance(np.array(plate)))
        corner = int(rng.integers(0, pad + 1))
        draw.rounded_rectangle((0, 0, shape[0] - 1, shape[1] - 1), corner, fill=plate)
    if rng.random() < 0.2:
        shift = rng.integers(1, 2 + shape[1] // 16, 2)
        draw.text((at[0] + shift[0], at[1] + shift[1]), word, font=font, fill=(0, 0, 0, 110))
    color = contrasting(rng, ground)
    edge = contrasting(rng, float(luminance(np.array(color))))
    draw.text(at, word, font=font, fill=color, stroke_width=stroke, stroke_fill=edge)
    ImageDraw.Draw(ink).text(at, word, font=font, fill=255)
    return patch, ink


def place_word(
    rng: np.random.Generator, image: Image.Image, word: str, scene: Scene, taken: np.ndarray
) -> np.ndarray | None:
    """Draw a word into the image where no other is: its quad (4, 2), or None for lack of room.

    Only the word's own box is warped, not the canvas: that is what makes rendering fast.
    """
    height = rng.uniform(*scene.height) * image.width
    font = load_font(font_files()[rng.integers(len(font_files()))], max(10, round(height * 1.3)))
    left, top, right, bottom = font.getbbox(word)
    stroke = int(rng.integers(1, 2 + height // 12)) if rng.random() < 0.2 else 0
    pad = 2 + stroke + int(rng.integers(0, 1 + height // 4))
    shape = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    found = find_room(rng, shape, scene, taken)
    if found is None or found[1] * (bottom - top) < 6:  # letters below 6 pixels are unreadable
        return None
    quad = found[0]
    (x0, y0), (x1, y1) = bounds(quad)
    matrix = homography(*shape, quad)
    inverse = np.linalg.inv(matrix) @ [[1, 0, x0], [0, 1, y0], [0, 0, 1]]
    warp = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    under = image.crop((x0, y0, x1, y1))
    ground = float(np.asarray(under.convert("L")).mean())
    for attempt in range(4):
        plated = rng.random() < 0.3 or attempt > 1  # a busy ground gets a plate in the end
        layers = paint(rng, word, font, (pad, stroke), ground, plated)
        patch, ink = (
            layer.transform(
                under.size, Image.Transform.PERSPECTIVE, warp, Image.Resampling.BILINEAR
            )
            for layer in layers
        )
        result = under.copy()
        result.paste(patch, mask=patch.getchannel("A"))
        light, inked = np.asarray(result.convert("L")), np.asarray(ink) > 128
        if inked.any() and abs(light[inked].mean() - light[~inked].mean()) > 50:
            break  # readable as composed, not only as planned
    image.paste(result, (int(x0), int(y0)))
    taken[y0:y1, x0:x1] = True
    return apply(matrix, box_corners(pad, pad, shape[0] - pad, shape[1] - pad))


def finish(rng: np.random.Generator, image: Image.Image, clutter: float) -> np.ndarray:
    """Uneven light, blur and sensor noise over the whole picture."""
    size = image.width
    if rng.random() < 0.3 * clutter:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.5 + size / 300)))
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    tilt = rng.normal(0, 0.12 * clutter, 2)
    light = 1 + rng.normal(0, 0.1 * clutter) + tilt[0] * ramp[:, None] + tilt[1] * ramp
    light = light.astype(np.float32)
    noise = rng.standard_normal((size, size), np.float32) * np.float32(rng.uniform(0, 8 * clutter))
    planes = (np.asarray(band, np.float32) * light + noise for band in image.split())
    return np.asarray(merge(planes))


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
    taken = np.zeros((size, size), bool)
    words, quads = [], []
    wanted = int(rng.integers(scene.words[0], scene.words[1] + 1))
    while not words:  # a long word in a wide font may find no room: then another one
        for _ in range(wanted):
            word = draw_word(rng, scene, split)
            quad = place_word(rng, image, word, scene, taken)
            if quad is not None:
                words.append(word)
                quads.append(quad)
    return Sample(finish(rng, image, scene.clutter), words, np.array(quads, np.float32))


class Rendered(Sequence):
    """Pictures 0 .. count - 1 of `render`."""

    def __init__(
        self, size: int, count: int, seed: int = 0, split: str = "train", scene: Scene = Scene()
    ) -> None:
        self.size, self.count, self.seed, self.split, self.scene = size, count, seed, split, scene

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
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


class Folder(Sequence, ABC):
    """Annotated pictures on disk; a subclass lists them all, one in ten is held out."""

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root)
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

    def __getitem__(self, index: int) -> Sample:
        """Read a picture; ValueError names the file if it cannot be decoded."""
        item = self.items[index]
        return Sample(np.asarray(open_image(item.path)), item.words, item.quads)


def open_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def need(path: Path, tree: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; wanted\n{tree}")
    return path


class ICDAR2015(Folder):
    """ICDAR 2015 Incidental Scene Text, training split; img_801 and later are held out."""

    TREE = """    ROOT/ch4_training_images/img_1.jpg
    ROOT/ch4_training_localization_transcription_gt/gt_img_1.txt"""

    def list_items(self) -> list[Item]:
        images = need(self.root / "ch4_training_images", self.TREE)
        labels = need(self.root / "ch4_training_localization_transcription_gt", self.TREE)
        paths = {int(path.stem.removeprefix("img_")): path for path in images.glob("img_*.jpg")}
        return [self.read(paths[n], labels / f"gt_img_{n}.txt") for n in sorted(paths)]

    def held_out(self, position: int, item: Item) -> bool:
        return int(item.path.stem.removeprefix("img_")) > 800

    def read(self, image: Path, label: Path) -> Item:
        words, quads, left_out = [], [], []
        for number, line in enumerate(
            need(label, self.TREE).read_text("utf-8-sig").splitlines(), 1
        ):
            fields = line.split(",", 8)  # a transcription may hold commas
            try:
                quad = np.array(fields[:8], np.float32).reshape(4, 2)
                word = fields[8]
            except (ValueError, IndexError):
                wanted = "x1,y1,x2,y2,x3,y3,x4,y4,text"
                raise ValueError(f"{label}:{number}: got {line!r}, wanted {wanted}") from None
            if word == "###":
                left_out.append("words marked unreadable")
            else:
                words.append(word)
                quads.append(quad)
        quads = np.array(quads, np.float32).reshape(-1, 4, 2)
        return Item(image, words, quads, tuple(left_out))


class JsonLines(Folder):
    """One JSON object a line; image paths are relative to the file."""

    def list_items(self) -> list[Item]:
        need(self.root, '    a file of {"image": path, "words": [...], "quads": optional} a line')
        items = []
        for number, line in enumerate(self.root.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                words, quads = entry["words"], entry.get("quads")
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise TypeError("words is not a list of strings")
                if quads is not None:
                    quads = np.array(quads, np.float32).reshape(len(words), 4, 2)
                items.append(Item(self.root.parent / entry["image"], words, quads))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                wanted = '{"image": path, "words": [text], "quads": [[[x, y] * 4]] or nothing}'
                where = f"{self.root}:{number}"
                raise ValueError(f"{where}: got {line[:80]!r} ({error}), wanted {wanted}") from None
        return items


class SynthText(Folder):
    """SynthText's own layout: gt.mat beside the folders of pictures that it names."""

    TREE = "    ROOT/gt.mat with imnames, txt and wordBB\n    ROOT/<imnames>"

    def list_items(self) -> list[Item]:
        from scipy.io import loadmat

        path, items = need(self.root / "gt.mat", self.TREE), []
        try:
            table = loadmat(path, variable_names=("imnames", "txt", "wordBB"))
            columns = zip(*(table[key][0] for key in ("imnames", "txt", "wordBB")), strict=True)
            for name, text, boxes in columns:
                words = " ".join(map(str, text.ravel())).split()
                quads = np.asarray(boxes, np.float32).reshape(2, 4, -1).transpose(2, 1, 0)
                if len(quads) == len(words):
                    items.append(Item(self.root / str(name[0]), words, quads))
                else:  # a few of the 858,750 disagree
                    reason = ("quads of pictures with another number of words",)
                    items.append(Item(self.root / str(name[0]), words, None, reason))
        except Exception as error:  # scipy raises whatever it stumbles over
            raise ValueError(
                f"{path}: not SynthText's gt.mat ({error!r}), wanted\n{self.TREE}"
            ) from None
        return items


def write_synthtext(root: str | Path, count: int, seed: int, size: int = 256) -> None:
    """Write `count` rendered pictures in SynthText's layout, for tests and trials."""
    from scipy.io import savemat

    root = Path(root)
    (root / "1").mkdir(parents=True, exist_ok=True)
    table = {key: np.empty((1, count), object) for key in ("imnames", "txt", "wordBB")}
    for index in range(count):
        sample, name = render(seed, index, size), f"1/picture_{index}.jpg"
        Image.fromarray(sample.image).save(root / name, quality=95)
        table["imnames"][0, index] = np.array([name])
        table["txt"][0, index] = np.array(sample.words)
        table["wordBB"][0, index] = sample.quads.transpose(2, 1, 0)
    savemat(root / "gt.mat", table)


def open_source(
    spec: str, split: str, size: int, count: int, seed: int = 0, scene: Scene = Scene()
) -> Rendered | Folder:
    """Open "synth", "synthtext:PATH", "icdar2015:PATH" or "jsonl:PATH".

    `size`, `count`, `seed` and `scene` matter for "synth" only.
    """
    kind, _, path = spec.partition(":")
    readers = {"synthtext": SynthText, "icdar2015": ICDAR2015, "jsonl": JsonLines}
    if spec == "synth":
        return Rendered(size, count, seed, split, scene)
    if kind not in readers or not path:
        raise ValueError(
            f"data: got {spec!r}, wanted synth, synthtext:PATH, icdar2015:PATH, jsonl:PATH"
        )
    return readers[kind](path, split)


# ------------------------------------------------------------------------------ what the model eats


class Batch(NamedTuple):
    """Pictures and the words drawn for them, before masking."""

    images: Tensor  # (B, 3, size, size) uint8
    ids: Tensor  # (B, L, N) int64
    skipped: list[str]  # why pictures of this batch are missing


def usable(words: Sequence[str], alphabet: vlpt.Alphabet, notes: Counter) -> list[str]:
    """The words that the alphabet can spell; the others are counted in `notes`."""
    kept = []
    for word in words:
        if not word.strip():
            notes["words that are empty"] += 1
        elif not set(word) <= set(alphabet.chars):
            notes["words with characters outside the alphabet"] += 1
        else:
            notes[f"words cut to {vlpt.CHARS} characters"] += len(word) > vlpt.CHARS
            kept.append(word)
    return kept


class Pretraining(torch.utils.data.Dataset):
    """An endless run over a source: item k is picture k mod length of a shuffled epoch.

    Each epoch draws up to N words of every picture anew. Everything follows from (seed, k), so
    the number of workers changes nothing. Pictures without a usable word are left out; `notes`
    counts them, and the words that were left out or cut.
    """

    def __init__(
        self, source: Rendered | Folder, alphabet: vlpt.Alphabet, size: int, seed: int
    ) -> None:
        self.source, self.alphabet, self.size, self.seed = source, alphabet, size, seed
        self.notes = Counter(getattr(source, "notes", ()))
        self.words: dict[int, list[str]] | None = None  # rendered ones are usable by construction
        if isinstance(source, Folder):
            found = {k: usable(i.words, alphabet, self.notes) for k, i in enumerate(source.items)}
            self.words = {k: words for k, words in found.items() if words}
            self.notes["pictures without a usable word"] += len(found) - len(self.words)
            if not self.words:
                raise ValueError(
                    f"{source.root}: no picture has a word that the alphabet can spell"
                )
        self.notes = +self.notes  # without zeros
        self.indices = np.arange(len(source)) if self.words is None else np.array(list(self.words))

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor] | str:
        """Picture (3, size, size) uint8 and ids (L, N), or why it cannot be had."""
        epoch, position = divmod(k, len(self.indices))
        index = int(self.indices[shuffled(len(self.indices), self.seed, epoch)[position]])
        try:
            sample = self.source[index]
        except ValueError as error:
            return str(error)
        words = sample.words if self.words is None else self.words[index]
        rng = np.random.default_rng([self.seed, k])
        drawn = rng.permutation(len(words))[: vlpt.WORDS]
        image = Image.fromarray(sample.image)
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, reducing_gap=2)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels, self.alphabet.encode([words[k] for k in drawn])


@lru_cache(maxsize=4)
def shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def collate(items: list[tuple[Tensor, Tensor] | str]) -> Batch:
    """Stack what could be read; the batch may be smaller, or empty, and says why."""
    good = [item for item in items if not isinstance(item, str)]
    skipped = [item for item in items if isinstance(item, str)]
    if not good:
        return Batch(torch.empty(0), torch.empty(0), skipped)
    return Batch(*(torch.stack(column) for column in zip(*good, strict=True)), skipped)


# ------------------------------------------------------------------------------------ contact sheet


def contact_sheet(source: Sequence[Sample], count: int, tile: int = 256) -> Image.Image:
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
    add("--sheet", required=True, metavar="FILE.png", help="picture to write")
    add("--data", default="synth", help="synth, synthtext:PATH, icdar2015:PATH or jsonl:PATH")
    add("--split", choices=SPLITS, default="train", help="which half")
    add("--count", type=int, default=24, help="pictures on the sheet")
    add("--size", type=int, default=256, help="side of rendered pictures, pixels")
    add("--seed", type=int, default=0, help="of rendered pictures")
    add("--digits", action="store_true", help="draw the demo's pictures (with --size 64)")
    args = parser.parse_args()
    try:
        scene = DIGITS if args.digits else Scene()
        if args.count < 1 or args.size < 32:
            raise ValueError("--count must be at least 1 and --size at least 32")
        source = open_source(args.data, args.split, args.size, args.count, args.seed, scene)
        sheet = contact_sheet(source, args.count, tile=256 if args.data == "synth" else 384)
        sheet.save(args.sheet)
    except (ValueError, OSError) as error:
        sys.exit(f"data_stub.py: error: {error}")
    print(f"{args.sheet}: {min(args.count, len(source))} pictures of {args.data}, {args.split}")


if __name__ == "__main__":
    main()
