"""A page in the browser to play with a trained model: type a word, hide a letter, see what is read.

    make play                                       # with the weights that come with the repository
    python -m experiments.play runs/demo            # with the model of a run

The renderer of data_stub.py draws the word, or a photograph takes its place. The page is served to
this machine alone, at 127.0.0.1. It needs `pip install '.[play]'`.
"""

import argparse
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import data_stub
import vlpt
from experiments.read import (
    BLANK,
    Reading,
    best,
    length_note,
    parse_word,
    read,
    scene_of,
    shrink,
    tidy,
    to_pixels,
    training_lengths,
)
from readers.pictures import open_image
from training import gallery
from training.dataset import stretch
from training.options import Parser, number
from training.runs import one_line_errors
from training.weights import load_model

MAX_ATTEMPTS = 20  # drawings of a word until it has room
CSS = "#about code {white-space: pre-wrap; overflow-wrap: anywhere}"  # for narrow windows
SHOWN_SIDE = 384  # pixels of a picture on the page


class Shown(NamedTuple):
    """What the page shows; all but the message is None if something is wrong."""

    message: str  # Markdown
    picture: Image.Image | None = None
    attention: Image.Image | None = None
    with_picture: dict[str, float] | None = None
    without_picture: dict[str, float] | None = None
    words: dict[str, float] | None = None  # to which of several words the picture belongs


# ---- Text in Markdown --------------------------------------------------------------------------


def code(text: str) -> str:
    """A span of code in Markdown, with a fence that is longer than any in the text."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " * (text.startswith("`") or text.endswith("`"))
    return f"{fence}{padding}{text}{padding}{fence}"


def escape(text: str) -> str:
    """A text in Markdown, which shows as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


# ---- What is behind the page -------------------------------------------------------------------


def draw(
    config: vlpt.Config, word: str, height: float, tilt: float, clutter: float, seed: int
) -> np.ndarray:
    """Draw a word as the renderer draws those of the training pictures.

    Args:
        height: of the letters, relative to the picture.
        tilt: the largest angle in degrees.
        clutter: 0..1.
    Returns:
        (S, S, 3) uint8, of the model's image size.
    Raises:
        ValueError: there is no room for the word, or no font has its letters.
    """
    scene = dataclasses.replace(
        scene_of(config), height=(height, height), tilt=tilt, clutter=clutter
    )
    if not data_stub.fonts_for(word, scene):
        raise ValueError(f"word: expected letters that a font of the renderer has, got {word!r}")
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        image = data_stub.background(rng, config.image_size, clutter)
        if data_stub.place_word(rng, image, word, scene, []) is not None:
            return data_stub.finish(rng, image, clutter)
    raise ValueError(f"word: expected one that fits into the picture, got {word!r}; try it smaller")


@torch.no_grad()
def match(model: vlpt.VLPT, image: np.ndarray, words: Sequence[str]) -> dict[str, float]:
    """The probability of each word to belong to a picture, as the contrastive loss sees it."""
    alphabet = vlpt.Alphabet(model.config.alphabet)
    square = stretch(to_pixels(image), model.config.image_size)
    feature, _, _ = model.encode_image(vlpt.normalize(square[None]))
    _, text = model.encode_text(torch.stack([alphabet.encode([word]) for word in words]))
    cosines = F.normalize(feature, dim=1) @ F.normalize(text, dim=1).T  # (1, words)
    shares = (model.logit_scale.exp() * cosines).softmax(dim=1)[0]
    return dict(zip(words, shares.tolist(), strict=True))


@matplotlib.style.context("default")
def overlay(image: np.ndarray, attention: Tensor | None) -> Image.Image:
    """A picture under an attention map, or alone if there is none."""
    pixels = shrink(to_pixels(image), SHOWN_SIDE)
    height, width = pixels.shape[1:]
    scale = SHOWN_SIDE / 100 / max(height, width)
    figure = Figure(figsize=(width * scale, height * scale), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    gallery.draw_heat(axes, pixels, attention)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Image.open(file).convert("RGB")


def letters(word: str) -> list[tuple[str, int]]:
    """The letters of a word that can be clicked, each with its position: the blank, or all."""
    word = tidy(word)
    blank = word.find(BLANK)
    return [(char, j) for j, char in enumerate(word) if blank < 0 or j == blank]


def answer(
    model: vlpt.VLPT, image: np.ndarray, word: str, position: int | None, others: str
) -> Shown:
    """Hide a letter and read it, and find out which words belong to the picture.

    Raises:
        ValueError: a word cannot be asked, see `experiments.read.parse_word`.
    """
    alphabet = vlpt.Alphabet(model.config.alphabet)
    clozes = {cloze.position: cloze for cloze in parse_word(word, alphabet)}
    cloze = clozes.get(position if position is not None else -1) or next(iter(clozes.values()))
    (reading,) = read(model, image, [cloze])
    candidates = [] if BLANK in word else [word]
    for other in others.replace(",", " ").split():
        if BLANK in other:
            raise ValueError(f"other words: expected whole words, got {other!r}")
        parse_word(other, alphabet)
        candidates.append(other)
    candidates = list(dict.fromkeys(candidates))  # each once
    return Shown(
        message(reading),
        overlay(image, None),
        overlay(image, reading.attention),
        named(best(reading, reading.with_picture)),
        named(best(reading, reading.without_picture)),
        match(model, image, candidates) if len(candidates) > 1 else None,
    )


def named(shares: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Characters and their probabilities; an underscore is said, as `_` also marks a blank."""
    return {"_ (underscore)" if char == BLANK else char: share for char, share in shares}


def message(reading: Reading) -> str:
    """What was read, in a sentence."""
    ((char, share),) = best(reading, reading.with_picture, 1)
    answer = reading.cloze.word[reading.cloze.position]
    verdict = (
        "" if answer == BLANK else ", which is right" if char == answer else ", which is wrong"
    )
    name = " (underscore)" if char == BLANK else ""
    return (
        f"In {code(reading.cloze.shown)} the model reads {code(char)}{name} "
        f"({100 * share:.0f} %){verdict}."
    )


def respond(
    model: vlpt.VLPT,
    word: str,
    position: int | None,
    height: float,
    tilt: float,
    clutter: float,
    seed: int,
    photograph: str | None,
    others: str,
) -> Shown:
    """What the page shows for what was chosen on it; a mistake becomes the message."""
    word = tidy(word)
    try:
        parse_word(word, vlpt.Alphabet(model.config.alphabet))
        if photograph is not None:
            image = np.asarray(open_image(Path(photograph))[0])
        elif BLANK in word:
            raise ValueError(
                f"word: expected a whole word, got {word!r}; a `{BLANK}` needs a photograph, so "
                "type the whole word and click a letter"
            )
        else:
            image = draw(model.config, word, height, tilt, clutter, seed)
        found = answer(model, image, word, position, others)
    except (ValueError, OSError) as error:
        text = str(error)
        if photograph is not None:  # a browser's upload lies in a folder that nobody knows
            text = text.replace(photograph, Path(photograph).name)
        return Shown(f"**{escape(text)}**")
    note = length_note(scene_of(model.config), [word])
    return found._replace(message=f"{found.message}\n\n{escape(note)}") if note else found


def example_words(config: vlpt.Config, count: int) -> list[str]:
    """Rendered words that were in no training picture, as long as most training words at most.

    Words of the renderer's list come first, and long ones before short ones.
    """
    rng = np.random.default_rng(1)
    scene = scene_of(config)
    found = dict.fromkeys(data_stub.draw_word(rng, scene, "heldout") for _ in range(20 * count))
    short = [word for word in found if len(word) <= scene.chars[1] and BLANK not in word]
    short.sort(key=lambda word: (word.lower() in data_stub.WORDS, len(word)), reverse=True)
    return short[:count]


# ---- The page ----------------------------------------------------------------------------------


def build_page(model: vlpt.VLPT) -> Any:
    """The page, a gradio.Blocks."""
    import gradio as gr

    scene = scene_of(model.config)
    first, *others = example_words(model.config, 6)
    chars = model.config.alphabet.replace(BLANK, "")
    shown_only = {"interactive": False, "buttons": ["fullscreen", "download"]}
    shares_only = {"show_heading": False, "min_width": 190}
    hour = 3600  # seconds; photographs and pictures that are older are deleted
    with gr.Blocks(title="VLPT reads", analytics_enabled=False, delete_cache=(hour, hour)) as page:
        gr.Markdown(
            "# What does the model read?\n"
            "Type a word and click the letter that is hidden from the model. It has to find the "
            "letter in the picture.",
        )
        seed = gr.State(0)
        with gr.Row():
            word = gr.Textbox(
                first, label="word", max_length=vlpt.MAX_CHARS, elem_id="word", min_width=120
            )
            choices = letters(first)
            position = gr.Radio(
                choices, value=0, label="hidden letter", elem_id="letters", scale=2, min_width=200
            )
        text = gr.Markdown(elem_id="message", latex_delimiters=[])
        with gr.Row():
            with gr.Column(scale=3), gr.Row():
                picture = gr.Image(
                    label="the picture", elem_id="picture", min_width=150, **shown_only
                )
                attention = gr.Image(
                    label="where it looked", elem_id="attention", min_width=150, **shown_only
                )
            with gr.Column(scale=2), gr.Row():
                with_picture = gr.Label(label="with the picture", elem_id="with", **shares_only)
                without = gr.Label(label="without the picture", elem_id="without", **shares_only)
        with gr.Row():
            with gr.Column():
                height = gr.Slider(
                    0.08,
                    0.6,
                    round(sum(scene.height) / 2, 2),
                    step=0.01,
                    label="height of letters",
                    elem_id="height",
                )
                tilt = gr.Slider(0, 45, scene.tilt, step=1, label="largest tilt in degrees")
                clutter = gr.Slider(0, 1, scene.clutter, step=0.05, label="clutter")
                anew = gr.Button("Draw it anew", elem_id="anew")
                photograph = gr.File(
                    height=140,
                    label="or a photograph of your own",
                    type="filepath",
                    elem_id="photograph",
                )
            with gr.Column():
                words = gr.Textbox(" ".join(others), label="other words", elem_id="others")
                matches = gr.Label(label="which word is it?", elem_id="matches", **shares_only)
        gr.Markdown(
            f"The model knows these characters: {code(chars)}. A `{BLANK}` in the word marks a "
            "hidden letter that you do not know; it needs a photograph.\n\n"
            f"About the length of words: {training_lengths(scene)}.\n\n"
            'Below "which word is it?" the contrastive side of the model says which of the '
            "words, the typed one and the other words, the picture shows.",
            latex_delimiters=[],
            elem_id="about",
        )
        inputs = [word, position, height, tilt, clutter, seed, photograph, words]
        outputs = [text, picture, attention, with_picture, without, matches]

        def respond_on_page(*chosen: Any) -> tuple[Any, ...]:
            *found, shares = respond(model, *chosen)
            return (*found, gr.Label(shares, visible=shares is not None))

        def update_letters(typed: str) -> Any:
            found = letters(typed)
            return gr.Radio(found, value=found[0][1] if found else None)

        drawing = [height, tilt, clutter, anew]

        def update_drawing(path: str | None) -> list[Any]:
            return [gr.update(interactive=path is None) for _ in drawing]

        show = {"fn": respond_on_page, "inputs": inputs, "outputs": outputs}
        show |= {"show_progress": "minimal", "trigger_mode": "always_last"}
        changes = [height.change, tilt.change, clutter.change, photograph.change, words.change]
        gr.on([page.load, position.input, *changes], **show)
        photograph.change(update_drawing, photograph, drawing, show_progress="hidden")
        word.change(update_letters, word, position, show_progress="hidden").then(**show)
        anew.click(lambda number: number + 1, seed, seed, show_progress="hidden").then(**show)
    return page


def make_parser() -> argparse.ArgumentParser:
    description, epilog = (__doc__ or "").split("\n\n", 1)
    parser = Parser(
        prog="python -m experiments.play",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    model = "a run's folder or a model's file (default: the weights that come with the repository)"
    add("model", metavar="MODEL", nargs="?", help=model)
    port = "port of the page's address (default: %(default)s)"
    add("--port", type=number(int, 1, 65536), default=7860, help=port)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_OFFLINE"] = "1"
        model = load_model(args.model)
        try:
            import gradio as gr
        except ImportError:
            raise ValueError("gradio: expected `pip install '.[play]'`, got none") from None
        fonts = ["system-ui", "sans-serif"]  # of the machine; gradio's own come from the network
        page = build_page(model)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=args.port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size="30mb",
                css=CSS,
                theme=gr.themes.Default(font=fonts, font_mono=["monospace"]),
            )
        except OSError:
            raise ValueError(
                f"--port: expected a free port, got {args.port}, which is in use"
            ) from None
        print(f"the page is at {address} until you stop this with Ctrl-C", flush=True)
        page.block_thread()


if __name__ == "__main__":
    main(sys.argv[1:])
