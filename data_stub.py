"""Pictures with words for VLPT: what a data set has to offer, and a renderer.

A `Source` is a data set of `Sample`s: an RGB picture, its words, and a quadrilateral around each
word (None where there is none; pre-training only uses it to keep words in view). It is one of two
splits, "train" and "heldout". Real data sets are in the folder `readers`; this file has the one
source that needs no download:

    Rendered(size, count, seed)   draws scene-like pictures, any number of them

A rendered picture follows from the seed, its number, the split, the size, the scene and the fonts
of VLPT_FONTS. Without that variable it is the same bytes on every machine with the same versions of
Pillow and NumPy, because the fonts come from pinned packages.
`python -m readers sheet synth sheet.png` shows what is drawn. `training.dataset.Pretraining` turns
a source into what the model is trained on.

Set the environment variable VLPT_FONTS to a folder to draw with its fonts as well, which is for
scripts that the packaged fonts lack (they have Latin, Greek and Cyrillic letters).
"""

from __future__ import annotations

import math
import os
import string
import sys
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import vlpt

SPLITS = ("train", "heldout")
Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels

# The faces that the renderer draws with, as package/path. All have a free licence: Caladea the
# Apache License 2.0, the others the SIL Open Font License. The extra `data` in pyproject.toml pins
# their packages, because another version would draw other pictures. The demo's `DIGITS` names two.
FONTS = (
    "font_caladea/files/Caladea-Bold.ttf",
    "font_caladea/files/Caladea-Regular.ttf",
    "font_fredoka_one/files/FredokaOne-Regular.ttf",
    "font_hanken_grotesk/files/HankenGrotesk-Medium.otf",
    "font_intuitive/files/Intuitive.ttf",
    "font_lato/files/Lato-BlackItalic.ttf",
    "font_lato/files/Lato-Regular.ttf",
    "font_manrope/files/Manrope-Bold.ttf",
)
FONT_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")  # of what VLPT_FONTS holds, in capitals or not
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
    words: list[str]  # as annotated, without unreadable ones; the list may be empty
    quads: np.ndarray | None  # (words, 4, 2) float32 pixels x, y, clockwise from the top left; may
    # reach beyond the picture
    outside: int = 0  # annotated words left out because most of their quad is off the picture
    ignored: np.ndarray | None = None  # (regions, 4, 2): text that is no word and no background
    notes: tuple[str, ...] = ()  # how its annotation was understood, where that is not obvious


class Source(torch.utils.data.Dataset[Sample], Sized, ABC):
    """One split of a data set: samples by number, from 0."""

    root: str | Path  # names the source in messages
    notes: Counter[str]  # what was left out of the annotation, and how often
    left_out: Sequence[str] = ()  # files and lines that are not used at all, with the reason

    @abstractmethod
    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        """Which pictures have a learnable word, (len,) bool; and, by the reason, how many words
        are cut or cannot be learned.
        """

    @abstractmethod
    def characters(self) -> Counter[str]:
        """How often each character occurs in the words, in NFC."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a picture in a message."""

    @abstractmethod
    def read(self, index: int, min_side: int | None = None) -> Sample:
        """Read a picture.

        Args: min_side: the picture may be scaled down, its quads with it, as long as both sides
            keep so many pixels. None: the picture in full size.
        Raises: ValueError, which names the file, if it cannot be decoded.
        """

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)


def is_learnable(word: str, alphabet: vlpt.Alphabet) -> bool:
    """Whether the alphabet has one of the word's first L characters, so that it can be masked."""
    chars = vlpt.normalize_text(word)[: vlpt.MAX_CHARS]
    return bool(word.strip()) and not alphabet.index.keys().isdisjoint(chars)


@lru_cache(maxsize=2)  # SynthText's 858,750 pictures take 7 MB for each order, in every worker
def shuffled(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch of pre-training or of a detector: a permutation of 0 .. length - 1."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)


# ------------------------------------------------------------------------------------------ fonts


@lru_cache(maxsize=8)
def font_files(fonts: tuple[str, ...] = FONTS) -> tuple[Path, ...]:
    """The files of these FONTS, then the readable ones of the folder VLPT_FONTS by name.

    Raises: FileNotFoundError if a font package or the folder is missing.
    """
    files = []
    for font in fonts:
        package, _, name = font.partition("/")
        spec = find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        file = Path(folders[0], name) if folders else None
        if file is None or not file.is_file():
            raise FileNotFoundError(
                f"fonts: expected the package {package.replace('_', '-')} with {Path(name).name}, "
                "got none; run: pip install '.[data]'"
            )
        files.append(file)
    if folder := os.getenv("VLPT_FONTS"):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"VLPT_FONTS: expected a folder of fonts, got {folder!r}")
        paths = sorted(Path(folder).rglob("*"))
        files += [path for path in paths if path.suffix.lower() in FONT_ENDINGS and is_font(path)]
    return tuple(files)


def is_font(path: Path) -> bool:
    """Whether a file can be drawn with; if not, a message says so. Fonts lie about their names."""
    try:
        load_font(path, 32).getmask("a")
    except (OSError, ValueError) as error:
        print(f"warning: {path} is skipped, as it is no readable font ({error})", file=sys.stderr)
        return False
    return True


@lru_cache(maxsize=512)
def load_font(path: Path, pixels: int) -> ImageFont.FreeTypeFont:
    # Pillow's other layout engine needs a library that only some machines have. It is left on for
    # the fonts of VLPT_FONTS, because scripts like Arabic need it.
    packaged = any(path.match(font) for font in FONTS)
    engine = ImageFont.Layout.BASIC if packaged else None
    return ImageFont.truetype(str(path), pixels, layout_engine=engine)


@lru_cache(maxsize=8)
def find_glyphs(chars: str, fonts: tuple[str, ...]) -> dict[Path, frozenset[str]]:
    """The font files, and which of the characters each of them can draw.

    Raises: ValueError, which names them, if there are characters that no font has.
    """
    glyphs = {path: glyphs_of(path, chars) for path in font_files(fonts)}
    missing = set(chars).difference(*glyphs.values())
    if missing:
        shown = "".join(sorted(missing))[:40]
        raise ValueError(
            f"alphabet: expected characters that a font can draw, got {len(missing)} that none "
            f"has: {shown!r}; set VLPT_FONTS to a folder of fonts that have them"
        )
    return glyphs


def glyphs_of(path: Path, chars: str) -> frozenset[str]:
    """Which of the characters a font file can draw; a blank is none of them."""
    font = load_font(path, 32)
    # U+FFFF is never a character: what is drawn for it stands for all that the font lacks.
    lacking = (picture_of(font, "\uffff"), picture_of(font, " "))
    return frozenset(c for c in chars if picture_of(font, c) not in lacking)


def picture_of(font: ImageFont.FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


# ------------------------------------------------------------------------------------ the renderer


@dataclass(frozen=True)
class Scene:
    """What the renderer draws; the defaults are the full variety.

    `train_min.PRESETS` says which scene a preset draws.
    """

    alphabet: str = vlpt.PRINTABLE  # characters that may appear
    kinds: tuple[str, ...] = ("list", "pseudo", "number", "random", "random")  # drawn evenly
    words: tuple[int, int] = (1, 4)  # fewest and most words of a picture
    chars: tuple[int, int] = (2, 10)  # shortest and longest word that is not from the list
    height: tuple[float, float] = (0.08, 0.25)  # of the font / of the picture
    tilt: float = 25.0  # largest rotation in degrees
    clutter: float = 1.0  # strength of texture, shapes, lighting and blur, 0..1
    fonts: tuple[str, ...] = FONTS  # the faces of words, beside those of VLPT_FONTS


# For pictures of 64 pixels; this is what `vlpt.TINY` learns to read in the demo. With one face with
# serifs and one without it learns in minutes; with all of FONTS it takes half as long again.
DIGITS = Scene(
    alphabet=string.digits,
    kinds=("number",),
    words=(1, 1),
    chars=(2, 4),
    height=(0.25, 0.45),
    tilt=10.0,
    fonts=("font_caladea/files/Caladea-Regular.ttf", "font_lato/files/Lato-Regular.ttf"),
)


def fonts_for(word: str, scene: Scene) -> list[Path]:
    """The scene's font files that have a glyph for every character of a word of its alphabet."""
    glyphs_by_font = find_glyphs(scene.alphabet, scene.fonts)
    return [path for path, glyphs in glyphs_by_font.items() if glyphs.issuperset(word)]


def split_of(word: str) -> str:
    """The split of a rendered word. A hash of the word, whatever its case, puts 10 % of all words
    into the held-out set; these never appear in training.
    """
    return "heldout" if zlib.crc32(word.lower().encode()) % 10 == 0 else "train"


def draw_word(rng: np.random.Generator, scene: Scene, split: str) -> str:
    """Draw a word of one of the scene's kinds that belongs to the split and that a font has.

    Raises: ValueError if no such word is found; one letter alone, for example, makes too few.
    """
    letters = [c for c in scene.alphabet if c in string.ascii_lowercase] or list(scene.alphabet)
    digits = [c for c in scene.alphabet if c.isdigit()] or list(scene.alphabet)
    for _ in range(1000):
        kind = scene.kinds[rng.integers(len(scene.kinds))]
        length = int(rng.integers(scene.chars[0], scene.chars[1] + 1))
        if kind == "list":
            word = WORDS[rng.integers(len(WORDS))]
        elif kind == "pseudo":
            word = pseudo_word(rng, letters, length)
        else:
            chars = digits if kind == "number" else scene.alphabet
            word = "".join(chars[k] for k in rng.integers(len(chars), size=length))
        if kind in ("list", "pseudo"):
            word = (word, word.upper(), word.title())[rng.integers(3)]
        if not set(word) <= set(scene.alphabet) or split_of(word) != split:
            continue
        if fonts_for(word, scene):
            return word
    raise ValueError(
        f"alphabet: expected enough characters for words of the split {split!r}, "
        f"got {scene.alphabet!r}"
    )


def pseudo_word(rng: np.random.Generator, letters: list[str], length: int) -> str:
    """Consonants and vowels in turn, so that it can be pronounced."""
    consonants = [c for c in letters if c not in "aeiou"] or letters
    vowels = [c for c in letters if c in "aeiou"] or letters
    start = rng.integers(2)
    turns = [(consonants, vowels)[(start + k) % 2] for k in range(length)]
    return "".join(turn[rng.integers(len(turn))] for turn in turns)


def merge(planes: Iterable[np.ndarray]) -> Image.Image:
    """An RGB picture from three float planes of 0..255; one by one is faster than (H, W, 3)."""
    bands = [Image.fromarray(plane.clip(0, 255).astype(np.uint8)) for plane in planes]
    return Image.merge("RGB", bands)


@lru_cache(maxsize=4)
def ramp(size: int) -> np.ndarray:
    return np.linspace(-1, 1, size, dtype=np.float32)


def background(rng: np.random.Generator, size: int, clutter: float) -> Image.Image:
    """A gradient with texture that is mostly luminance noise, and a few shapes."""
    base = rng.uniform(30, 225, 3) * 0.5 + rng.uniform(30, 225) * 0.5
    slope = rng.normal(0, 30 * clutter, (2, 3))
    tint = rng.uniform(0.85, 1.15, 3)
    texture = np.zeros((size, size), np.float32)
    for cells in (4, 16, size // 2):
        noise = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
        # Pillow enlarges in one thread. A matrix product would be faster alone, but it starts a
        # thread for every core, which slows down many workers at once.
        noise = noise.resize((size, size), Image.Resampling.BICUBIC)
        texture += np.asarray(noise) * np.float32(rng.uniform(2, 16) * clutter)
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


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 3x3 matrix that maps the corners (4, 2) of one quad to those of another."""
    rows = []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solution = np.linalg.solve(rows, target.ravel())
    return np.append(solution, 1).reshape(3, 3)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (P, 2) points by a homography."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[:, :2] / mapped[:, 2:]


def box_corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def luminance(color: Sequence[float]) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def find_room(
    rng: np.random.Generator, extent: tuple[int, int], scene: Scene, size: int, taken: list[Box]
) -> tuple[np.ndarray, Box, float] | None:
    """A tilted quad of about a (width, height) box where no other word is, the box around it, and
    its scale; None if the picture is full.
    """
    width, height = extent
    corners = box_corners(-width / 2, -height / 2, width / 2, height / 2)
    scale = min(1.0, 0.95 * size / max(extent))
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
    rng: np.random.Generator,
    ink: Image.Image,
    outline: Image.Image | None,
    pad: int,
    ground: float,
    plated: bool,
) -> Image.Image:
    """Paint a word, given as a mask (L), with plate, shadow and outline; return RGBA.

    Args: ground: the luminance of what will be around it, 0..255.
    """
    patch = Image.new("RGBA", ink.size)
    if plated:
        plate = tuple(rng.integers(0, 256, 3).tolist())
        ground = luminance(plate)
        corner = int(rng.integers(0, pad + 1))
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

    Only the word's own box is warped, not the whole picture: that is what makes rendering fast.
    """
    height = rng.uniform(*scene.height) * image.width
    fonts = fonts_for(word, scene)
    font = load_font(fonts[rng.integers(len(fonts))], max(10, round(height * 1.3)))
    left, top, right, bottom = font.getbbox(word)
    stroke = int(rng.integers(1, 2 + int(height) // 12)) if rng.random() < 0.2 else 0
    pad = 2 + stroke + int(rng.integers(0, 1 + int(height) // 4))
    extent = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    found = find_room(rng, extent, scene, image.width, taken)
    if found is None:
        return None
    quad, box, scale = found
    if scale * (bottom - top) < 6:  # pixels; smaller letters are unreadable
        return None

    ink = Image.new("L", extent)
    outline = Image.new("L", extent) if stroke else None
    at = (pad - left, pad - top)
    ImageDraw.Draw(ink).text(at, word, 255, font)
    if outline:
        ImageDraw.Draw(outline).text(at, word, 255, font, stroke_width=stroke)

    under = image.crop(box)
    to_patch = homography(quad - box[:2], box_corners(0, 0, *extent))
    coefficients = to_patch.ravel()[:8].tolist()
    warp = (under.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    inked = np.asarray(ink.transform(*warp)) > 128
    ground = float(np.asarray(under.convert("L")).mean())
    for attempt in range(4):
        plated = rng.random() < 0.3 or attempt > 1  # a busy ground gets a plate in the end
        patch = paint(rng, ink, outline, pad, ground, plated).transform(*warp)
        result = under.copy()
        result.paste(patch, mask=patch)
        light = np.asarray(result.convert("L"))
        if inked.any() and abs(light[inked].mean() - light[~inked].mean()) > 50:
            break  # it is readable as composed, not only as planned
    image.paste(result, box[:2])
    taken.append(box)
    word_corners = box_corners(pad, pad, extent[0] - pad, extent[1] - pad)
    return apply(np.linalg.inv(to_patch), word_corners) + box[:2]


def finish(rng: np.random.Generator, image: Image.Image, clutter: float) -> np.ndarray:
    """Uneven light, blur and sensor noise over the whole picture."""
    size = image.width
    bands = image.split()
    if rng.random() < 0.3 * clutter:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.3, 0.5 + size / 300))
        bands = tuple(band.filter(blur) for band in bands)
    tilt = rng.normal(0, 0.12 * clutter, 2)
    light = 1 + rng.normal(0, 0.1 * clutter) + tilt[0] * ramp(size)[:, None] + tilt[1] * ramp(size)
    light = light.astype(np.float32)
    noise = rng.standard_normal((size, size), np.float32) * np.float32(rng.uniform(0, 8 * clutter))
    return np.array(merge(np.asarray(band) * light + noise for band in bands))


def render(
    seed: int, index: int, size: int, split: str = "train", scene: Scene = Scene()
) -> Sample:
    """Draw picture `index` of a seed: the same bytes for the same arguments.

    Args:
        size: height and width in pixels.
        split: "train" or "heldout"; no word is in both.
    Returns: a sample with at least one word and a quad for each.
    """
    rng = np.random.default_rng([seed, index, SPLITS.index(split)])
    image = background(rng, size, scene.clutter)
    words = list[str]()
    quads = list[np.ndarray]()
    taken = list[Box]()
    wanted = int(rng.integers(scene.words[0], scene.words[1] + 1))
    while not words:  # a long word in a wide font may find no room; then another word is tried
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
        self.size = size
        self.count = count
        self.seed = seed
        self.split = split
        self.scene = scene
        self.root = "synth"
        self.notes = Counter()
        draw_word(np.random.default_rng(seed), scene, split)  # fails now if it ever will

    def __len__(self) -> int:
        return self.count

    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        return np.ones(self.count, bool), Counter()

    def characters(self) -> Counter[str]:
        return Counter(self.scene.alphabet)

    def name(self, index: int) -> str:
        return f"picture {index} of seed {self.seed}"

    def read(self, index: int, min_side: int | None = None) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return render(self.seed, index, self.size, self.split, self.scene)
