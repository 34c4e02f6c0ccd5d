"""Write a stand-in for LSVT: its layout and, by default, its size, with pictures of noise.

    python -m experiments.fake_lsvt DIR --full 30000 --weak 400000

The benchmark measures how fast the labels of the real data set would be read. The pictures do not
show their words, so that nothing can be learned from them.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.options import Parser
from training.runs import one_line_errors

FULL, WEAK = 30_000, 400_000  # training pictures with all texts in their places, and with one text
DISTINCT = 16  # pictures; the others are links to these
PER_FOLDER = 50_000
CHARACTERS = 4_000  # different ones, the rarest a few hundred times rarer than the most frequent


def fake_lsvt(root: Path, full: int, weak: int) -> None:
    """Write a stand-in for LSVT in a new folder.

    Raises: ValueError if there are too few pictures, or the folder is not empty, or its disk full.
    """
    if min(full, weak) < 2:
        raise ValueError(
            f"--full, --weak: expected at least 2 pictures each, got {full} and {weak}"
        )
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root}: expected a new or empty folder, got one with files in it")
    needed = 1_500 * full + 150 * weak + 2 * 10**7  # bytes
    free = shutil.disk_usage(root).free
    if free < needed:
        message = f"expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f}"
        raise ValueError(f"{root}: {message}")
    rng = np.random.default_rng(0)
    write_part(root, "full", full, rng)
    write_part(root, "weak", weak, rng)


def write_part(root: Path, part: str, count: int, rng: np.random.Generator) -> None:
    """Write one label file and its folders of pictures."""
    labels = {}
    for k in tqdm(range(count), f"{root}/{part}", unit="picture", disable=None):
        path = root / f"train_{part}_images_{k // PER_FOLDER}" / f"gt_{k}.jpg"
        if k % PER_FOLDER == 0:
            path.parent.mkdir()
        if k < DISTINCT:
            noise = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
            noise.resize((720, 480)).save(path)
        else:
            os.link(root / f"train_{part}_images_0" / f"gt_{k % DISTINCT}.jpg", path)
        labels[f"gt_{k}"] = draw_texts(rng, placed=part == "full")
    text = json.dumps(labels, ensure_ascii=False)
    (root / f"train_{part}_labels.json").write_text(text, encoding="utf-8")


def draw_texts(rng: np.random.Generator, placed: bool) -> list[dict[str, Any]]:
    """The annotation of a picture: 2 to 14 texts with their places, or one text without."""
    texts: list[dict[str, Any]] = []
    for _ in range(rng.integers(2, 15) if placed else 1):
        # The logarithm of a character's rank is uniform, so that the first ranks are frequent.
        ranks = CHARACTERS ** rng.random(rng.integers(2, 13))
        word = "".join(chr(0x4E00 + int(rank) - 1) for rank in ranks)
        texts.append({"transcription": word})
        if placed:
            x, y = rng.integers(0, (640, 440)).tolist()
            corners = [[x, y], [x + 80, y], [x + 80, y + 40], [x, y + 40]]
            texts[-1] |= {"points": corners, "illegibility": bool(rng.random() < 0.2)}
    return texts


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m experiments.fake_lsvt",
        description="Write a stand-in for LSVT: its label files, and links to a few pictures.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    help_full = f"pictures with all texts in their places (default: {FULL}, as published)"
    help_weak = f"pictures with one text, without its place (default: {WEAK}, as published)"
    parser.add_argument("--full", type=int, default=FULL, help=help_full)
    parser.add_argument("--weak", type=int, default=WEAK, help=help_weak)
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        fake_lsvt(args.folder, args.full, args.weak)
    print(f"{args.folder}: {args.full + args.weak:,} pictures in LSVT's layout")


if __name__ == "__main__":
    main()
