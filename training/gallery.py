"""Pictures of what a model makes of held-out images: where it looks, what it reads, what is alike.

attention_figure(model, heldout)     which letter looks where, a matplotlib Figure
watch(model, heldout)                the same for a few images as numbers, for the log of a run
learning_figure(heldout, readings)   these numbers of a whole run as a strip over time
save_animation(path, ...)            and as an animated GIF
retrieval_figure(model, heldout)     the nearest words of images, the nearest images of words
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from PIL import Image
from torch import Tensor

import vlpt
from training.dataset import Pretraining

RIGHT, WRONG = "#1a7f37", "#c0241c"  # colours of what is read
WATCHED = 3  # images that are read at each evaluation of a run
MAX_WATCHED_CHARS = 4  # of the first word of each
MAX_COLUMNS = 10  # evaluations in the strip
CANDIDATES = 128  # images and word sets among which the nearest are found
NEAREST = 5
QUERIES = 3  # word sets whose nearest images are shown

# ---- Letters -----------------------------------------------------------------------------------


@cache
def glyphs(path: str) -> frozenset[int]:
    """The code points that a font file can show."""
    with suppress(ValueError, OSError, RuntimeError):
        return frozenset(get_font(path).get_charmap())
    return frozenset()


def find_fonts(text: str) -> tuple[list[str], set[str]]:
    """Fonts of this machine that show a text, and those of its characters that none of them has."""
    regular = {"style": "normal", "variant": "normal", "weight": 400}
    files = {
        font.name: font.fname
        for font in fontManager.ttflist
        if all(getattr(font, key) == value for key, value in regular.items())
        and not re.match("cm|STIX|Last Resort", font.name)  # their letters have other codes
    }
    fonts = ["DejaVu Sans"]  # matplotlib's own
    missing = {ord(c) for c in text if c.isprintable()} - glyphs(files.get(fonts[0], ""))
    while missing:
        best = max(sorted(files), key=lambda name: len(missing & glyphs(files[name])))
        if not missing & glyphs(files[best]):
            break
        fonts.append(best)
        missing -= glyphs(files[best])
    return fonts, {c for c in text if ord(c) in missing or not c.isprintable()}


def spell_out(text: str, missing: set[str]) -> str:
    """A text in which characters that no font has are written as their code points."""
    return "".join(f" U+{ord(c):04X} " if c in missing else c for c in text).strip()


# ---- Attention ---------------------------------------------------------------------------------


def caption(word: str, j: int, guess: str, missing: set[str]) -> tuple[str, str]:
    """What is hidden and what is read there, in words and as a colour."""
    before = "…" * (j > 4) + word[max(0, j - 4) : j]
    after = word[j + 1 : j + 5] + "…" * (len(word) > j + 5)
    shown = f"{before}_{after}"
    if missing & set(word):
        shown = f"{j + 1} of {len(word)}, {spell_out(word[j], missing)}"
    is_right = guess == word[j]
    read = spell_out(guess, missing) or "nothing"
    return f"{shown}\nread {read} {'✓' if is_right else '✗'}", color_of(is_right)


def color_of(is_right: bool) -> str:
    return RIGHT if is_right else WRONG


def first_pictures(heldout: Pretraining, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first readable held-out images, at most `count`, and their ids.

    Raises:
        ValueError: none of the first ones can be read.
    """
    items = (heldout[k] for k in range(min(4 * count, len(heldout.indices))))
    chosen = list(islice((item[:2] for item in items if not isinstance(item, str)), count))
    if not chosen:
        raise ValueError("held-out images: expected a readable one among the first, got none")
    return chosen


def known_positions(ids: Tensor, count: int) -> list[int]:
    """Where an image's first word has characters of the alphabet, the first `count` of them."""
    return (ids[:, 0] > vlpt.UNK).nonzero().flatten()[:count].tolist()


@contextmanager
def evaluation_mode(model: vlpt.VLPT) -> Iterator[None]:
    """Switch a model to evaluation for a block without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def empty_grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of so many axes without frames and ticks."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])  # or the layout measures them all, though they are hidden
        axes.axis("off")
    return figure, grid


def look(
    model: vlpt.VLPT, pixels: Tensor, ids: Tensor, positions: list[int]
) -> tuple[Tensor, list[Tensor]]:
    """Hide each of these characters of an image's first word, one at a time.

    Returns:
        The probabilities of all ids at each position, (len(positions), V); and the attention maps
        of the image feature and of each hidden character, or none if the model has no decoder.
    """
    device = model.logit_scale.device
    copies = range(len(positions))
    hidden = ids.repeat(len(positions), 1, 1).to(device)  # copy n hides the character n
    hidden[copies, positions, 0] = vlpt.MASK
    images = vlpt.normalize(pixels.expand(len(positions), -1, -1, -1).to(device))
    probs = model(images, hidden).logits[copies, positions, 0].softmax(dim=-1).cpu()
    if model.decoder is None:
        return probs, []
    pooled, maps = model.attention_maps(images, hidden)
    return probs, [pooled[0], *maps[copies, positions, 0]]


def read_char(alphabet: vlpt.Alphabet, probs: Tensor) -> str:
    """The most likely of all ids as text, nothing for PAD."""
    return alphabet.decode(probs.argmax().reshape(1, 1))[0]


@matplotlib.style.context("default")
def attention_figure(model: vlpt.VLPT, heldout: Pretraining, pictures: int = 6) -> Figure:
    """Which letter looks where: a row a picture, a column for each hidden character of its word."""
    chosen = first_pictures(heldout, pictures)
    alphabet = heldout.alphabet
    fonts, missing = find_fonts(alphabet.chars)
    known = [known_positions(ids, 8) for _, ids in chosen]
    columns = 2 + max(map(len, known))
    size = (max(1.7 * columns, 7), 2.2 * len(chosen) + 0.7)
    figure, grid = empty_grid(len(chosen), columns, size)
    with evaluation_mode(model):
        looks = [look(model, *picture, where) for picture, where in zip(chosen, known, strict=True)]
    for row, (pixels, ids), positions, (probs, maps) in zip(
        grid, chosen, known, looks, strict=True
    ):
        word = alphabet.decode(ids)[0]
        title = spell_out(word[:12], missing) + "…" * (len(word) > 12)
        captions = [(title, "black"), ("image feature", "black")]
        for j, each in zip(positions, probs, strict=True):
            captions.append(caption(word, j, read_char(alphabet, each), missing))
        heats: list[Tensor | None] = [None, *maps]
        heats += [None] * (len(captions) - len(heats))
        for axes, heat, (title, color) in zip(row, heats, captions, strict=False):
            axes.set_title(title, color=color, parse_math=False, fontsize=11, fontfamily=fonts)
            draw_heat(axes, pixels, heat)
    about = "held-out images (no decoder, so no attention)"
    if model.decoder is not None:
        about = "held-out images; where the image feature looks; then one character hidden (_),"
        about += "\nwhat is read there, and where it was looked for (bright = more attention)"
    figure.suptitle(about, fontsize=11)
    shrink_titles(figure, grid)
    return figure


def draw_heat(axes: Axes, pixels: Tensor, heat: Tensor | None) -> None:
    """Show an image (3, H, W), in grey under a map (h, w) if there is one."""
    image = pixels.permute(1, 2, 0).numpy()
    if heat is None:
        axes.imshow(image)
        return
    level = heat.float().cpu().numpy() / heat.max().item()
    height, width = pixels.shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(image.mean(2) * 0.7, "gray", vmin=0, vmax=255)
    axes.imshow(level, "inferno", alpha=0.6 * level, interpolation="bilinear", extent=extent)


def shrink_titles(figure: Figure, grid: np.ndarray) -> None:
    """Make titles smaller that would run into each other."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or saving computes it again, which takes as long
    for axes in grid.flat:
        share = axes.title.get_window_extent().width / axes.get_window_extent().width
        axes.title.set_fontsize(11 / max(1.0, 1.06 * share))


# ---- Watching a run learn ----------------------------------------------------------------------


def watch(model: vlpt.VLPT, heldout: Pretraining) -> list[dict[str, Any]]:
    """Read a few held-out images, the same ones at each evaluation of a run.

    Returns:
        An entry for each image: its first word and, for each hidden character, its position, what
        is read there, the probability of the right character, and the attention map divided by its
        maximum, or None if the model has no decoder. All of it can be written as JSON.
    """
    alphabet = heldout.alphabet
    found = []
    with evaluation_mode(model):
        for pixels, ids in first_pictures(heldout, WATCHED):
            positions = known_positions(ids, MAX_WATCHED_CHARS)
            probs, maps = look(model, pixels, ids, positions)
            characters = []
            for n, j in enumerate(positions):
                attention = None
                if maps:
                    heat = maps[1 + n] / maps[1 + n].max()
                    attention = [[round(value, 3) for value in row] for row in heat.tolist()]
                characters.append(
                    {
                        "position": j,
                        "guess": read_char(alphabet, probs[n]),
                        "probability": round(probs[n, ids[j, 0]].item(), 4),
                        "attention": attention,
                    }
                )
            found.append({"word": alphabet.decode(ids)[0], "characters": characters})
    return found


def draw_watched(
    axes: Axes, pixels: Tensor, word: str, character: Mapping[str, Any], missing: set[str]
) -> tuple[str, str]:
    """Draw an image under the attention of a hidden character; return its caption and colour."""
    attention = character["attention"]
    draw_heat(axes, pixels, None if attention is None else torch.tensor(attention))
    return caption(word, character["position"], character["guess"], missing)


@matplotlib.style.context("default")
def learning_figure(heldout: Pretraining, readings: Sequence[Mapping[str, Any]]) -> Figure:
    """A strip over time: a row for each watched image, a column for each evaluation of a run.

    Args:
        readings: at least one, each with `samples` and, as `pictures`, what `watch` returned.
    """
    pictures = first_pictures(heldout, WATCHED)
    fonts, missing = find_fonts(heldout.alphabet.chars)
    shown = np.linspace(0, len(readings) - 1, min(MAX_COLUMNS, len(readings))).round().astype(int)
    size = (1.25 * (len(shown) + 1), 1.6 * len(pictures) + 0.8)
    figure, grid = empty_grid(len(pictures), len(shown) + 1, (max(size[0], 6), size[1]))
    for row, (pixels, _) in enumerate(pictures):
        first = readings[0]["pictures"][row]
        # Another character in each row: the first, the second, and so on.
        n = row % max(1, len(first["characters"]))
        draw_heat(grid[row, 0], pixels, None)
        title = spell_out(first["word"][:12], missing)
        grid[row, 0].set_title(title, parse_math=False, fontfamily=fonts)
        for axes, k in zip(grid[row, 1:], shown, strict=True):
            picture = readings[k]["pictures"][row]
            title, color = draw_watched(
                axes, pixels, picture["word"], picture["characters"][n], missing
            )
            axes.set_title(title, color=color, parse_math=False, fontfamily=fonts)
            if row == len(pictures) - 1:
                label = f"{readings[k]['samples']:,}"
                axes.text(0.5, -0.06, label, ha="center", va="top", transform=axes.transAxes)
    figure.suptitle(
        "the same held-out images during training: one character hidden (_), what is read there,\n"
        "and where it was looked for; below, the number of training images seen",
        fontsize=11,
    )
    shrink_titles(figure, grid)
    return figure


@matplotlib.style.context("default")
def watched_figure(heldout: Pretraining, reading: Mapping[str, Any]) -> Figure:
    """One moment of a run: a row for each watched image, a column for each hidden character."""
    pictures = first_pictures(heldout, WATCHED)
    fonts, missing = find_fonts(heldout.alphabet.chars)
    characters = [entry for picture in reading["pictures"] for entry in picture["characters"]]
    columns = 1 + max(len(picture["characters"]) for picture in reading["pictures"])
    figure, grid = empty_grid(len(pictures), columns, (1.4 * columns, 1.75 * len(pictures) + 0.5))
    num_right = 0
    for row, (pixels, _), picture in zip(grid, pictures, reading["pictures"], strict=True):
        word = picture["word"]
        draw_heat(row[0], pixels, None)
        row[0].set_title(spell_out(word[:12], missing), parse_math=False, fontfamily=fonts)
        for axes, character in zip(row[1:], picture["characters"], strict=False):
            title, color = draw_watched(axes, pixels, word, character, missing)
            num_right += character["guess"] == word[character["position"]]
            axes.set_title(title, color=color, parse_math=False, fontfamily=fonts)
    figure.suptitle(
        f"after {reading['samples']:,} training images\n"
        f"{num_right} of {len(characters)} hidden characters (_) are read",
        fontsize=11,
    )
    shrink_titles(figure, grid)
    return figure


def save_animation(path: Path, heldout: Pretraining, readings: Sequence[Mapping[str, Any]]) -> None:
    """Write an animated GIF, with a frame for each evaluation of a run and a pause at the end."""
    frames = []
    for reading in readings:
        with io.BytesIO() as file:
            watched_figure(heldout, reading).savefig(file, dpi=90)
            frame = Image.open(file).convert("RGB")
            frames.append(frame.quantize(256, Image.Quantize.FASTOCTREE))  # keeps red and green
    durations = [700] * (len(frames) - 1) + [3000]  # milliseconds
    content = io.BytesIO()
    frames[0].save(
        content, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    vlpt.write_atomically(path, content.getvalue())


# ---- Retrieval ---------------------------------------------------------------------------------


def retrieval_features(
    model: vlpt.VLPT, pictures: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The L2-normalised features (P, D) of images and of their words, none of them masked."""
    device = model.logit_scale.device
    image_features, text_features = [], []
    for start in range(0, len(pictures), 16):
        pixels, ids = zip(*pictures[start : start + 16], strict=True)
        images = vlpt.normalize(torch.stack(pixels).to(device))
        image_features.append(model.encode_image(images)[0].cpu())
        text_features.append(model.encode_text(torch.stack(ids).to(device))[1].cpu())
    image = F.normalize(torch.cat(image_features).float(), dim=1)
    text = F.normalize(torch.cat(text_features).float(), dim=1)
    return image, text


@matplotlib.style.context("default")
def retrieval_figure(model: vlpt.VLPT, heldout: Pretraining) -> Figure:
    """The word sets nearest to some images, and the images nearest to some words.

    The image's own words, and the images with just these words, are marked. The words are whole,
    whereas `i2t` and `t2i` of an evaluation are of masked words.
    """
    pictures = first_pictures(heldout, CANDIDATES)
    with evaluation_mode(model):
        image, text = retrieval_features(model, pictures)
    words = [" ".join(filter(None, heldout.alphabet.decode(ids))) for _, ids in pictures]
    word_sets = list(dict.fromkeys(words))  # each once
    similarity = image @ text[[words.index(each) for each in word_sets]].T
    fonts, missing = find_fonts("".join(words))
    shown = [spell_out(each, missing) for each in word_sets]
    shown = [each if len(each) <= 24 else each[:23] + "…" for each in shown]
    columns = 1 + NEAREST
    figure, grid = empty_grid(2 + QUERIES, columns, (1.6 * columns, 1.85 * (2 + QUERIES) + 0.8))
    style: dict[str, Any] = {"fontsize": 11, "fontfamily": fonts, "parse_math": False}
    style |= {"ha": "center", "va": "center"}

    # The words of an image are listed below it.
    for k, (pixels, _) in enumerate(pictures[:columns]):
        draw_heat(grid[0, k], pixels, None)
        nearest = similarity[k].topk(min(NEAREST, len(word_sets)))
        for line, (cosine, n) in enumerate(zip(*map(Tensor.tolist, nearest), strict=True)):
            is_right = word_sets[n] == words[k]
            label = f"{shown[n]}   {cosine:.2f}{' ✓' * is_right}"
            color = RIGHT if is_right else "black"
            grid[1, k].text(0.5, 1 - 0.2 * line, label, color=color, **style)

    # The images of words are to the right of them.
    queries = [n for n, each in enumerate(word_sets) if each not in words[:columns]][:QUERIES]
    for (first, *others), n in zip(grid[2:], queries, strict=False):
        first.text(0.5, 0.5, shown[n].replace(" ", "\n"), **style)
        nearest = similarity[:, n].topk(min(NEAREST, len(pictures)))
        for axes, cosine, k in zip(others, *map(Tensor.tolist, nearest), strict=False):
            is_right = words[k] == word_sets[n]
            draw_heat(axes, pictures[k][0], None)
            color = RIGHT if is_right else "black"
            axes.set_title(f"{cosine:.2f}{' ✓' * is_right}", fontsize=11, color=color)
    figure.suptitle(
        f"Above: images, and below each the nearest words of {len(pictures)} held-out images.\n"
        "Below: words, and to their right the nearest of these images.\n"
        "The numbers are cosine similarities; ✓ marks the image's own words.",
        fontsize=11,
    )
    return figure
