"""Write a stand-in for SynthText: its layout and, by default, its size, with rendered pictures.

    python -m experiments.fake_synthtext DIR --images 858750

The benchmark measures how fast the real data set would be read; the tests read a small one.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

from data_stub import Scene, render
from training.options import Parser
from training.runs import one_line_errors

PUBLISHED = 858_750  # pictures


def write_synthtext(
    root: str | Path,
    count: int,
    seed: int,
    size: int = 256,
    scene: Scene = Scene(),
    distinct: int | None = None,
) -> None:
    """Write `count` rendered pictures in SynthText's layout.

    With `distinct`, only so many are rendered; the others are hard links with the same annotation,
    except that one in 1,000 has its quads moved half a picture aside and one in 10,000 lacks a
    line of words, as such things happen in the published file.
    """
    root = Path(root)
    samples = []
    table = {key: np.empty((1, count), object) for key in ("imnames", "wordBB", "charBB", "txt")}
    for index in tqdm(range(count), f"{root}/", unit="picture", disable=None):
        name = f"{1 + index // 4000}/picture_{index}.jpg"
        if index % 4000 == 0:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        if index < (distinct or count):
            sample = render(seed, index, size, scene=scene)
            Image.fromarray(sample.image).save(root / name, quality=95)
            assert sample.quads is not None  # rendered pictures have them
            letters = np.concatenate(list(map(split_quad, sample.quads, map(len, sample.words))))
            boxes = [q.T if len(q) > 1 else q[0].T for q in (sample.quads, letters)]
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
    top = quad[0] + step * (quad[1] - quad[0])
    bottom = quad[3] + step * (quad[2] - quad[3])
    return np.stack([top[:-1], top[1:], bottom[1:], bottom[:-1]], 1)


def fake_synthtext(root: Path, images: int) -> None:
    """Write a stand-in for SynthText in a new folder; 128 of its pictures are distinct.

    Raises: ValueError if the folder is not empty or the disk too full.
    """
    if images < 2:
        raise ValueError(f"--images: expected at least 2, got {images}")
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"{root}: expected a new or empty folder, got one with files in it")
    needed = 3_000 * images + 2 * 10**7  # bytes
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(
            f"{root}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f}"
        )
    scene = Scene(words=(4, 13), height=(0.04, 0.08))  # 8.5 words a picture, as published
    write_synthtext(root, images, 0, 512, scene, distinct=min(images, 128))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m experiments.fake_synthtext",
        description="Write a stand-in for SynthText: gt.mat, and links to a few rendered pictures.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    parser.add_argument(
        "--images",
        type=int,
        default=PUBLISHED,
        help=f"how many (default: {PUBLISHED}, as published)",
    )
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        fake_synthtext(args.folder, args.images)
    print(f"{args.folder}: {args.images:,} pictures in SynthText's layout")


if __name__ == "__main__":
    main()
