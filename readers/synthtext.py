"""SynthText, 858,750 pictures with drawn words.

https://www.robots.ox.ac.uk/~vgg/data/scenetext/ has the data set. Its gt.mat takes minutes and
3.3 GB of memory to read, so that it has an index (readers/index.py).
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import numpy as np

import vlpt
from data_stub import SPLITS, Sample, Source
from readers.alphabet import CUT
from readers.files import is_unreadable, require
from readers.folder import MARKED, Annotation, read_sample
from readers.index import (
    Content,
    Index,
    count_characters,
    find_learnable,
    open_index,
    read_chunks,
)

LAYOUT = (
    "PATH/gt.mat with imnames, txt and wordBB, and its pictures as "
    "PATH/8/ballet_106_0.jpg or PATH/all_images/8/ballet_106_0.jpg"
)
MISMATCHES = "pictures whose numbers of quads and words differ"
TWICE = "repeated entries of a picture in gt.mat"


def open_table(root: Path) -> Index:
    """The index of root/gt.mat; training pictures come first.

    A picture's name, words and quads lie between its row of `ends` and the next one:

        ends   (pictures + 1, 3) int64: bytes of names, bytes of text, quads so far
        names  (bytes,) uint8, UTF-8
        text   (bytes,) uint8, UTF-8: each word in NFC, cut to L, with a line break after; nothing
               but the line break for a word that is marked unreadable
        quads  (words, 4, 2) float32 pixels: the bulk; only what is used is in memory

    Raises: FileNotFoundError; ValueError if gt.mat is not SynthText's or no index can be written.
    """
    gt = require(root / "gt.mat", LAYOUT)
    key = [gt.stat().st_size, gt.stat().st_mtime_ns]
    return open_index(gt, key, lambda: read_annotation(gt))


def require_whole(gt: Path) -> None:
    """Check that the elements of a MATLAB file add up to its size.

    SciPy does not check this, and a truncated file can crash the interpreter.
    """
    size = gt.stat().st_size
    with gt.open("rb") as file:
        order = {b"IM": "<I", b"MI": ">I"}.get(file.read(128)[126:])
        end = 128
        while order and end < size:
            file.seek(end + 4)
            end += 8 + struct.unpack(order, file.read(4).ljust(4))[0]
    if not order or end != size:
        raise ValueError("it is cut off, damaged, or not a MATLAB file of version 5")


def read_annotation(gt: Path) -> Content:
    """Read gt.mat for its index."""
    from scipy.io import loadmat
    from tqdm import tqdm

    count, names, texts = Counter[str](), [], []
    boxes = [np.empty((0, 4, 2), np.float32)]
    seen = set[bytes]()
    try:
        require_whole(gt)
        table = loadmat(gt, variable_names=("imnames", "txt", "wordBB"))
        columns = np.concatenate([table[key] for key in ("imnames", "txt", "wordBB")])
        held = np.arange(columns.shape[1]) % 10 == 9
        held[-1] |= not held.any()
        for k in tqdm(np.argsort(held, kind="stable"), str(gt), unit="picture", disable=None):
            name, text, quads = columns[:, k]
            words = vlpt.normalize_text(" ".join(map(str, text.flat))).split()
            split = SPLITS[int(held[k])]
            path = str(name[0]).encode()
            if path in seen:  # it might be in both splits
                count[f"twice_{split}"] += 1
                continue
            seen.add(path)
            quads = np.asarray(quads, np.float32).reshape(2, 4, -1).transpose(2, 1, 0)
            if len(quads) != len(words):  # a few of the 858,750 disagree
                count[f"mismatches_{split}"] += 1
                continue
            count[split] += 1
            count[f"cut_{split}"] += sum(len(word) > vlpt.MAX_CHARS for word in words)
            marked = [is_unreadable(word) for word in words]
            count[f"marked_{split}"] += sum(marked)
            words = ["" if skip else word for word, skip in zip(words, marked, strict=True)]
            names.append(path)
            texts.append("".join(word[: vlpt.MAX_CHARS] + "\n" for word in words).encode())
            boxes.append(quads)
    except MemoryError:
        raise ValueError(f"{gt}: not enough memory to read it; SynthText's needs 3.3 GB") from None
    except Exception as error:  # scipy raises whatever it stumbles over
        raise ValueError(f"{gt}: not SynthText's gt.mat ({error!r}); expected {LAYOUT}") from None
    if min(count["train"], count["heldout"]) < 1:
        mismatches, twice = (
            sum(count[f"{k}_{s}"] for s in SPLITS) for k in ("mismatches", "twice")
        )
        raise ValueError(
            f"{gt}: expected annotated pictures in both splits, got {len(names)} altogether; "
            f"{MISMATCHES}: {mismatches:,}; {TWICE}: {twice:,}"
        )
    lengths = [(len(n), len(t), len(b)) for n, t, b in zip(names, texts, boxes[1:], strict=True)]
    ends = np.cumsum([(0, 0, 0), *lengths], axis=0, dtype=np.int64)
    return count, {
        "ends": ends,
        "names": np.frombuffer(b"".join(names), np.uint8),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "quads": np.concatenate(boxes),
    }


class SynthText(Source):
    """SynthText's own layout: gt.mat beside the folders of pictures that it names.

    Words are in NFC and cut to L. Those of which at most half is in their picture are left out. One
    picture in ten is held out.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        self.split = split
        self.table = open_table(self.root)
        count = Counter(self.table.about)
        self.names, self.text = self.table.arrays["names"], self.table.arrays["text"]
        part = slice(count["train"] + 1) if split == "train" else slice(count["train"], None)
        self.ends = self.table.arrays["ends"][part]
        counts = {MISMATCHES: "mismatches", TWICE: "twice", MARKED: "marked", CUT: "cut"}
        self.notes = Counter({why: count[f"{name}_{split}"] for why, name in counts.items()})
        first = [self.name(k) for k in range(min(100, len(self)))]
        for folder in (self.root, self.root / "all_images"):
            if any((folder / name).is_file() for name in first):
                self.folder = folder
                break
        else:
            raise FileNotFoundError(
                f"{self.root}: expected {LAYOUT}, got none of the first {len(first)} pictures, "
                f"such as {first[0]}"
            )

    def __reduce__(self) -> tuple[type[SynthText], tuple[Path, str]]:
        return SynthText, (self.root, self.split)  # a worker maps the file itself

    def __len__(self) -> int:
        return len(self.ends) - 1

    def name(self, index: int) -> str:
        row = range(len(self))[index]
        start, stop = self.ends[row : row + 2, 0]
        return self.names[start:stop].tobytes().decode()

    def read(self, index: int, min_side: int | None = None) -> Sample:
        row = range(len(self))[index]
        (_, start, first), (_, stop, last) = self.ends[row : row + 2].tolist()
        words = self.text[start:stop].tobytes().decode().split("\n")[:-1]
        quads = np.array(self.table.arrays["quads"][first:last])  # a copy, which can be changed
        readable = np.array(words, str) != ""
        path = self.folder / self.name(index)
        known = list(filter(None, words))
        item = Annotation(path, known, list(quads[readable]), (), list(quads[~readable]))
        return read_sample(item, as_shown=False, min_side=min_side)

    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        return find_learnable(read_chunks(self.text, self.ends[:, 1:]), alphabet)

    def characters(self) -> Counter[str]:
        return count_characters(read_chunks(self.text, self.ends[:, 1:]))
