"""Does the decoder look for a hidden character where it is?

    python -m experiments.localise runs/demo             # print how far off it looks
    python -m experiments.localise MODEL MODEL --save    # and keep it in experiments/results.json

Each MODEL is the folder of a run or the file of a whole model. In held-out rendered pictures each
character of each word is hidden in turn. The centre of mass of its attention map, as the figures
show it (`vlpt.VLPT.attention_maps`), is compared with the place of the character: a point on the
middle line of its word's quad, at (j + 1/2) / length for character j, as if all characters had the
same width. Distances are shares of the side of a picture, means over all hidden characters:

    own         from the centre of the map to the place of the hidden character
    siblings    to the places of the other characters of its word
    other map   from the centre of a map of the next picture to the place of the hidden character
    uniform     from the middle of the picture, the centre of a uniform map, to that place

The decoder looks at the word if own is less than other map and uniform, and at the character if own
is less than siblings. `nearest` is the share of the characters that are the nearest ones of their
word to the centre of their map; `chance` is that share for guesses. Words of one character count in
neither, nor in siblings.

The pictures are rendered, of the kind that `experiments.read.scene_of` guesses from alphabet and
image size. A model of the curriculum's second stage gets the first stage's single words. For the
short pre-trainings of experiments/reproduce.py, which compare the two text encoders, they have one
or two words. The file has a list for each text encoder, one entry for each model, and --save
replaces these lists.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data_stub
import vlpt
from experiments.read import scene_of
from experiments.reproduce import ALNUM, RESULTS, two_words
from training.gallery import evaluation_mode
from training.options import Parser, number
from training.runs import one_line_errors
from training.weights import load_model

PICTURES = 512
SEED = 0  # of the pictures


def places(quad: np.ndarray, length: int) -> np.ndarray:
    """Where the characters of a word are, (length, 2) x, y, for its quad (4, 2)."""
    top_left, top_right, bottom_right, bottom_left = quad
    start, end = (top_left + bottom_left) / 2, (top_right + bottom_right) / 2
    shares = (np.arange(length)[:, None] + 0.5) / length
    return start + shares * (end - start)


def centres(maps: np.ndarray) -> np.ndarray:
    """The centres of mass (..., 2) x, y of maps (..., h, w), as shares of the picture."""
    h, w = maps.shape[-2:]
    maps = maps / maps.sum((-2, -1), keepdims=True)
    x = (maps.sum(-2) * (np.arange(w) + 0.5) / w).sum(-1)
    y = (maps.sum(-1) * (np.arange(h) + 0.5) / h).sum(-1)
    return np.stack([x, y], -1)


def look_for_each(
    model: vlpt.VLPT, sample: data_stub.Sample
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hide each known character of a picture's first words in turn.

    Returns:
        For each of these words the places of its characters (length, 2), and the centres of the
        maps of those that were hidden, (length, 2) with NaN for unknown ones.
    """
    alphabet = vlpt.Alphabet(model.config.alphabet)
    words = sample.words[: vlpt.MAX_WORDS]
    ids = alphabet.encode(words)
    hidden = [
        (j, i) for i in range(len(words)) for j in range(vlpt.MAX_CHARS) if ids[j, i] > vlpt.UNK
    ]
    copies = ids.repeat(len(hidden), 1, 1)
    rows = range(len(hidden))
    js, where = [j for j, _ in hidden], [i for _, i in hidden]
    copies[rows, js, where] = vlpt.MASK
    pixels = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
    images = vlpt.normalize(pixels).expand(len(hidden), -1, -1, -1)
    _, maps = model.attention_maps(images, copies)
    found = centres(maps[rows, js, where].double().numpy())
    size = sample.image.shape[0]
    result = []
    for i, word in enumerate(words):
        length = min(len(vlpt.normalize_text(word)), vlpt.MAX_CHARS)
        assert sample.quads is not None  # the renderer has them
        centre = np.full((length, 2), np.nan)
        for row, (j, of_word) in enumerate(hidden):
            if of_word == i:
                centre[j] = found[row]
        result.append((places(sample.quads[i] / size, length), centre))
    return result


def measure(model: vlpt.VLPT, pictures: int = PICTURES) -> dict[str, float]:
    """Compare the places of characters with the centres of their maps, as the top of this says.

    Raises:
        ValueError: the model has no decoder.
    """
    config = model.config
    scene = two_words if config.alphabet == ALNUM else scene_of(config)
    source = data_stub.Rendered(config.image_size, pictures, SEED, "heldout", scene)
    with evaluation_mode(model):
        looked = [look_for_each(model, source[k]) for k in range(pictures)]
    distances: dict[str, list[float]] = {"own": [], "siblings": [], "other map": [], "uniform": []}
    nearest, chance = [], []
    for k, words in enumerate(looked):
        following = np.concatenate([centre for _, centre in looked[(k + 1) % pictures]])
        following = following[np.isfinite(following[:, 0])]
        num_seen = 0
        for place, centre in words:
            for j in np.flatnonzero(np.isfinite(centre[:, 0])).tolist():
                to_each = np.linalg.norm(place - centre[j], axis=1)
                other = following[num_seen % len(following)]
                num_seen += 1
                distances["own"].append(to_each[j])
                distances["other map"].append(float(np.linalg.norm(place[j] - other)))
                distances["uniform"].append(float(np.linalg.norm(place[j] - 0.5)))
                if len(place) > 1:
                    distances["siblings"].append(np.delete(to_each, j).mean())
                    nearest.append(float(to_each.argmin() == j))
                    chance.append(1 / len(place))
    means = {name: round(float(np.mean(values)), 4) for name, values in distances.items()}
    means |= {"nearest": round(float(np.mean(nearest)), 4)}
    means |= {"chance": round(float(np.mean(chance)), 4)}
    return means | {"pictures": pictures, "characters": len(distances["own"])}


def save(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write what was measured, by text encoder, to the file of results, beside what is there."""
    results = json.loads(path.read_text("utf-8"))
    results["localisation"] = results.get("localisation", {}) | found
    vlpt.write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False).encode() + b"\n")


def make_parser() -> argparse.ArgumentParser:
    description, epilog = (__doc__ or "").split("\n\n", 1)
    parser = Parser(
        prog="python -m experiments.localise",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help="a run's folder or a model's file")
    pictures = "number of held-out rendered pictures (default: %(default)s)"
    add("--pictures", type=number(int, 2), default=PICTURES, help=pictures)
    kept = "write the numbers to experiments/results.json, in place of earlier ones (default: off)"
    add("--save", action="store_true", help=kept)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        models = {name: load_model(name) for name in args.models}
        found: dict[str, list[dict[str, Any]]] = {}
        for name, model in models.items():
            numbers = measure(model, args.pictures)
            shown = "  ".join(f"{key} {value}" for key, value in numbers.items())
            print(f"{name} ({model.config.text_encoder} encoder): {shown}", flush=True)
            grid = model.config.image_size // model.backbone.stride
            label = Path(name).name if Path(name).is_dir() else Path(name).stem
            entry = {"model": label, **numbers, "grid": f"{grid} x {grid}"}
            found.setdefault(model.config.text_encoder, []).append(entry)
        if args.save:
            save(found, RESULTS)
            print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main(sys.argv[1:])
