"""Let a trained model read: which character is hidden, with the picture and without it?

    python -m experiments.read MODEL sign.jpg --words "S_LE" "EX_T"
    python -m experiments.read MODEL synth:7               # held-out rendered picture 7
    python -m experiments.read MODEL icdar2015:PATH:7      # picture 7 of a held-out half
    python -m experiments.read synth:7                     # the weights that come with this

MODEL is the folder of a run or the file of a whole model. The character at the `_` of a word is
hidden, as in training. The five most likely characters are printed, as read from the picture and as
guessed from the other letters alone, with a blank grey picture. The figure --out shows where the
decoder looked for each. A word without `_` has its characters hidden in turn. Without --words these
are the annotated words of the picture. The file of a picture has no annotation: its question is
then `_`, a word of one hidden letter.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import data_stub
import readers
import train_min
import vlpt
from experiments import curriculum
from readers.pictures import is_picture, open_image
from training import gallery, report
from training.dataset import stretch, trim
from training.options import Parser
from training.runs import one_line_errors
from training.weights import load_model

BLANK = "_"
NUM_BEST = 5  # characters shown
MAX_SIDE = 512  # pixels of a picture in the figure
COLUMNS = 6  # of the figure


class Cloze(NamedTuple):
    """A word with one hidden character."""

    word: str  # in NFC
    position: int
    is_known: bool = True  # whether the word has the answer at `position`, or a blank

    @property
    def shown(self) -> str:
        return self.word[: self.position] + BLANK + self.word[self.position + 1 :]


class Reading(NamedTuple):
    """What a model makes of a cloze. The probabilities are those of the alphabet's characters."""

    cloze: Cloze
    chars: str  # the alphabet
    with_picture: Tensor  # (len(chars),), sums to 1
    without_picture: Tensor  # (len(chars),), the same with a blank grey picture
    attention: Tensor | None  # (h, w), sums to 1; None if the model has no decoder


# ---- Words -------------------------------------------------------------------------------------


def tidy(text: str) -> str:
    """A typed word without the white space around it, in NFC."""
    return vlpt.normalize_text(text.strip())


def parse_word(text: str, alphabet: vlpt.Alphabet) -> list[Cloze]:
    """Turn what a user typed into one cloze, or one for each character if no `_` is in it.

    Raises:
        ValueError: the word has two `_`, is too long or empty, or has other letters.
    """
    word = tidy(text)
    if any(char.isspace() for char in word):
        raise ValueError(
            f"words: expected no white space in a word, got {text!r}; write each word on its own"
        )
    if not 1 <= len(word) <= vlpt.MAX_CHARS:
        raise ValueError(
            f"words: expected 1 to {vlpt.MAX_CHARS} characters, got {len(word)} in {text!r}"
        )
    blanks = word.count(BLANK)
    if blanks > 1:
        raise ValueError(
            f"words: expected at most one {BLANK}, because the model was trained with one hidden "
            f"character a word, got {blanks} in {text!r}"
        )
    others = sorted(set(word) - {BLANK} - set(alphabet.chars))
    if others:
        chars = report.format_value(alphabet.chars)
        raise ValueError(
            f"words: expected letters of the model's alphabet, {chars}, got {''.join(others)!r} in "
            f"{text!r}"
        )
    if blanks:
        return [Cloze(word, word.index(BLANK), is_known=False)]
    return [Cloze(word, position) for position in range(len(word))]


def hide_each(word: str, alphabet: vlpt.Alphabet) -> list[Cloze]:
    """Hide each character of an annotated word that the alphabet has, as training does."""
    word = vlpt.normalize_text(word)[: vlpt.MAX_CHARS]
    return [Cloze(word, position) for position, char in enumerate(word) if char in alphabet.index]


def length_note(scene: data_stub.Scene, words: Sequence[str]) -> str:
    """A sentence if a word is longer than most training words; otherwise nothing."""
    longest = max(words, key=len, default="")
    if len(longest) <= scene.chars[1]:
        return ""
    return f"{longest} is a long word: {training_lengths(scene)}"


def training_lengths(scene: data_stub.Scene) -> str:
    """How long the words of a scene are. Those of the renderer's list have any length."""
    few, many = scene.chars
    have = "mostly have" if "list" in scene.kinds else "have"
    return (
        f"rendered training words {have} {few} to {many} characters, and models often misread "
        "longer ones"
    )


# ---- Pictures ----------------------------------------------------------------------------------


def scene_of(config: vlpt.Config) -> data_stub.Scene:
    """What the renderer draws for a model, a guess from its alphabet and image size.

    It is the scene of the first stage of the curriculum or of the preset that has them. A model of
    the curriculum's second stage gets the first stage's single words, as it has the same two.
    """
    for stage in curriculum.STAGES:
        has_alphabet = config.alphabet == curriculum.CONFIG.alphabet
        if has_alphabet and config.image_size == stage.image_size:
            return stage.scene
    for preset in train_min.PRESETS.values():
        if preset.config.alphabet == config.alphabet:
            return preset.scene
    return data_stub.Scene(alphabet=config.alphabet)


def open_subject(text: str, config: vlpt.Config) -> tuple[np.ndarray, list[str]]:
    """Open what a user named: the file of a picture, synth:K, or SOURCE:PATH:K.

    Returns:
        The picture (H, W, 3) uint8, and its annotated words, none for a file.
    Raises:
        ValueError, OSError: it cannot be read.
    """
    kind = text.partition(":")[0]
    if ":" not in text or kind not in ("synth", *readers.READERS):
        return np.asarray(open_image(Path(text))[0]), []
    spec, _, number = text.rpartition(":")
    if not number.isdecimal():
        raise ValueError(f"picture: expected {spec}:K with a number K from 0, got {text!r}")
    k = int(number)
    source = readers.open_source(spec, "heldout", config.image_size, k + 1, 0, scene_of(config))
    if k >= len(source):
        raise ValueError(f"picture: expected a number below {len(source)}, got {k} in {text!r}")
    sample = source.read(k)
    return sample.image, sample.words


def to_pixels(image: np.ndarray) -> Tensor:
    """Turn a picture (H, W, 3) into (3, H, W), a copy."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def shrink(pixels: Tensor, max_side: int) -> Tensor:
    """Make a picture (3, H, W) smaller if one of its sides is longer than this."""
    scale = max_side / max(pixels.shape[1:])
    if scale >= 1:
        return pixels
    small = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    resized = torch.nn.functional.interpolate(pixels[None], small, mode="bilinear", antialias=True)
    return resized[0]


# ---- Reading -----------------------------------------------------------------------------------


@torch.no_grad()
def read(model: vlpt.VLPT, image: np.ndarray, clozes: Sequence[Cloze]) -> list[Reading]:
    """Ask a model for hidden characters, each word on its own.

    Args:
        model: in evaluation mode.
        image: (H, W, 3) uint8 of any size; it is stretched to the square that the model takes.
        clozes: at least one.
    """
    alphabet = vlpt.Alphabet(model.config.alphabet)
    rows = torch.arange(len(clozes))
    positions = torch.tensor([cloze.position for cloze in clozes])
    ids = torch.stack([alphabet.encode([cloze.word]) for cloze in clozes])
    ids[rows, positions, 0] = vlpt.MASK
    ids = trim(ids)
    square = stretch(to_pixels(image), model.config.image_size)
    picture = vlpt.normalize(square[None])  # (1, 3, H, W)
    blank = torch.zeros_like(picture)  # the mean colour of training images
    char_features, _ = model.encode_text(ids)
    shares = []
    for each in (picture, blank):
        feature, tokens, grid = model.encode_image(each)
        copies = tokens.expand(len(ids), -1, -1)
        logits = model.decode(char_features, feature.expand(len(ids), -1), copies, grid)
        # PAD, MASK and UNK are never hidden, so they are no answers.
        shares.append(logits[rows, positions, 0, vlpt.UNK + 1 :].softmax(dim=-1))
    with_picture, without_picture = shares
    maps: list[Tensor] | list[None] = [None] * len(clozes)
    if model.decoder is not None:
        _, char_maps = model.attention_maps(picture.expand(len(ids), -1, -1, -1), ids)
        maps = list(char_maps[rows, positions, 0])
    return [
        Reading(cloze, alphabet.chars, with_picture[k], without_picture[k], maps[k])
        for k, cloze in enumerate(clozes)
    ]


def best(reading: Reading, shares: Tensor, count: int = NUM_BEST) -> list[tuple[str, float]]:
    """The most likely characters and their probabilities."""
    values, indices = shares.topk(min(count, len(reading.chars)))
    return [
        (reading.chars[k], value)
        for k, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def describe(reading: Reading) -> str:
    """Two lines of text: the best characters with the picture and without it."""
    lines = []
    for label, shares in (
        ("with the picture", reading.with_picture),
        ("with a blank one", reading.without_picture),
    ):
        cells = [f"{char} {100 * share:5.1f} %" for char, share in best(reading, shares)]
        lines.append(f"  {label}   {'   '.join(cells)}")
    return "\n".join([reading.cloze.shown, *lines])


@matplotlib.style.context("default")
def reading_figure(image: np.ndarray, readings: Sequence[Reading]) -> Figure:
    """The picture, and for each hidden character where it was looked for and what was read."""
    pixels = shrink(to_pixels(image), MAX_SIDE)
    columns = min(COLUMNS, len(readings) + 1)
    rows = -(-(len(readings) + 1) // columns)
    height, width = pixels.shape[1:]
    tile = 2.2 * min(2.0, max(0.5, height / width)) + 0.7
    size = (max(2.2 * columns, 5), tile * rows + 0.6)
    figure, grid = gallery.empty_grid(rows, columns, size)
    words = "".join(reading.cloze.word for reading in readings)
    fonts, missing = gallery.find_fonts(readings[0].chars + words)
    gallery.draw_heat(grid.flat[0], pixels, None)
    grid.flat[0].set_title("the picture", fontsize=11)
    for axes, reading in zip(grid.flat[1:], readings, strict=False):
        (char, share), *_ = best(reading, reading.with_picture)
        answer = reading.cloze.word[reading.cloze.position]
        ((guess, guess_share),) = best(reading, reading.without_picture, 1)
        title = f"hidden: {gallery.spell_out(reading.cloze.shown, missing)}\nread "
        title += f"{gallery.spell_out(char, missing)}, {100 * share:.0f} %"
        color = "black"
        if reading.cloze.is_known:
            title, color = (
                f"{title} {'✓' if char == answer else '✗'}",
                gallery.color_of(char == answer),
            )
        gallery.draw_heat(axes, pixels, reading.attention)
        style = {"parse_math": False, "fontfamily": fonts}
        axes.set_title(title, color=color, fontsize=11, linespacing=1.4, **style)
        below = (
            f"without the picture: {gallery.spell_out(guess, missing)}, {100 * guess_share:.0f} %"
        )
        style |= {"ha": "center", "va": "top", "transform": axes.transAxes}
        axes.text(0.5, -0.04, below, fontsize=9, **style)
    about = "one character hidden (_), what is read there,"
    about += "\nand where it was looked for (bright = more attention)"
    if readings[0].attention is None:
        about = "one character hidden (_), and what is read there;\nthe model has no decoder"
    figure.suptitle(about, fontsize=11)
    gallery.shrink_titles(figure, grid)
    return figure


# ---- The command -------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    description, epilog = (__doc__ or "").split("\n\n", 1)
    parser = Parser(
        prog="python -m experiments.read",
        usage="%(prog)s [MODEL] PICTURE [--words WORD ...] [--out OUT]",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    model = "a run's folder or a model's file (default: the weights that come with the repository)"
    add("model", metavar="MODEL", nargs="?", help=model)
    picture = "a picture's file, synth:K, or SOURCE:PATH:K"
    add(
        "picture",
        metavar="PICTURE",
        nargs="?",
        help=f"{picture}, where SOURCE:PATH is as for train_min.py",
    )
    words = "words with one hidden character `_`, or with none, to hide each in turn"
    add("--words", nargs="+", metavar="WORD", help=words)
    out = "the figure to write, a .png (default: %(default)s)"
    add("--out", type=Path, default=Path("reading.png"), help=out)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if args.picture is None:  # one argument is the picture
        args.model, args.picture = None, args.model
    if args.picture is None and args.words:
        parser.error("--words: expected it after PICTURE, got no PICTURE before it")
    if args.picture is None:
        parser.error("PICTURE: expected a picture's file, synth:K, or SOURCE:PATH:K, got none")
    if args.model and is_picture(Path(args.model)) and not Path(args.model).is_dir():
        parser.error(
            "MODEL: expected a run's folder or a model's file before PICTURE, got a picture, "
            f"{args.model!r}; words go after --words"
        )
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out: expected a name that ends in .png, got {str(args.out)!r}")
    with one_line_errors(parser.prog):
        model = load_model(args.model)
        alphabet = vlpt.Alphabet(model.config.alphabet)
        typed = [cloze for word in args.words or () for cloze in parse_word(word, alphabet)]
        image, words = open_subject(args.picture, model.config)
        annotated = [cloze for word in words for cloze in hide_each(word, alphabet)]
        clozes = typed or annotated or [Cloze(BLANK, 0, is_known=False)]
        readings = read(model, image, clozes)
        if words:
            print(f"annotated words: {' '.join(words)}")
        note = length_note(scene_of(model.config), [cloze.word for cloze in clozes])
        if note:
            print(f"note: {note}")
        print("\n".join(map(describe, readings)))
        reading_figure(image, readings).savefig(args.out, dpi=110)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
