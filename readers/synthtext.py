"""SynthText, 858,750 pictures with drawn words.

https://www.robots.ox.ac.uk/~vgg/data/scenetext/ has the data set. Its gt.mat takes minutes and
3.3 GB of memory to read, so what is needed of it is written once to an index beside it, which
later starts and all worker processes map into memory.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vlpt
from data_stub import SPLITS, Sample, Source
from readers.alphabet import CUT, PARTLY, UNKNOWN
from readers.files import is_unreadable, require
from readers.folder import MARKED
from readers.pictures import open_picture, place_polygons
from readers.polygons import bounding_quads, split_visible

LAYOUT = (
    "ROOT/gt.mat with imnames, txt and wordBB, and its pictures as "
    "ROOT/8/ballet_106_0.jpg or ROOT/all_images/8/ballet_106_0.jpg"
)
MISMATCHES = "pictures with another number of quads than words"
TWICE = "pictures that gt.mat lists once more"
MAGIC = int.from_bytes(b"vlpt-ix2", "little")  # the last character is the format's version
HEAD = (
    "magic",
    "gt_bytes",
    "gt_mtime_ns",
    "pictures",
    "train",
    "quads",
    "names",
    "text",
    "mismatches_train",
    "mismatches_heldout",
    "cut_train",
    "cut_heldout",
    "marked_train",
    "marked_heldout",
    "twice_train",
    "twice_heldout",
)


class Index(NamedTuple):
    """What is needed of gt.mat, as one file of flat arrays; training pictures come first.

    A picture's name, words and quads lie between its row of `ends` and the next one. The file is
    mapped, so processes share what they touch of it; quads, the bulk, are read when asked for.
    """

    path: Path
    head: dict[str, int]  # by the names in HEAD; in the file (words, 4, 2) float32 pixels follow
    ends: np.ndarray  # (pictures + 1, 3) int64: bytes of names, bytes of text, quads so far
    names: np.ndarray  # (bytes,) uint8, UTF-8
    # (bytes,) uint8, UTF-8: each word in NFC, cut to L, with a line break after; nothing but the
    # line break for a word that is marked unreadable.
    text: np.ndarray


def open_index(root: Path) -> Index:
    """Map the index of root/gt.mat; build it first if there is none, or one of another gt.mat.

    Raises: FileNotFoundError; ValueError if gt.mat is not SynthText's or no index can be written.
    """
    gt = require(root / "gt.mat", LAYOUT)
    key = (MAGIC, gt.stat().st_size, gt.stat().st_mtime_ns)
    places = index_places(gt)
    for path in places:
        with suppress(OSError, ValueError):
            return read_index(path, key)
    start = time.perf_counter()
    arrays = build_index(gt, key)
    failures = []
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


def index_places(gt: Path) -> list[Path]:
    """Where the index of gt.mat may be: beside it, or in a cache if that cannot be written."""
    places = [gt.with_name("gt.mat.index")]
    with suppress(RuntimeError):  # a process without a home folder has no cache
        cache = Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlpt"
        places.append(cache / f"{zlib.crc32(bytes(gt.resolve())):08x}.index")
    return places


def read_index(path: Path, key: tuple[int, int, int]) -> Index:
    """Map an index file. Raises: OSError, ValueError if it is not whole or of another gt.mat."""
    values = np.fromfile(path, np.int64, len(HEAD)).tolist()
    head = dict(zip(HEAD, values, strict=True))
    data = np.memmap(path, np.uint8, "r")
    sizes = [
        8 * len(HEAD),
        32 * head["quads"],
        24 * (head["pictures"] + 1),
        head["names"],
        head["text"],
    ]
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


def require_whole(gt: Path) -> None:
    """Check that the parts of a MATLAB file fill it exactly, as none does that was cut off.

    SciPy checks no sizes: a file of which some bytes are missing may end the process.
    """
    size = gt.stat().st_size
    with gt.open("rb") as file:
        order = {b"IM": "<I", b"MI": ">I"}.get(file.read(128)[126:])
        end = 128
        while order and end < size:
            file.seek(end + 4)
            end += 8 + struct.unpack(order, file.read(4).ljust(4))[0]
    if not order or end != size:
        raise ValueError("it is cut off, damaged, or no MATLAB file of version 5")


def build_index(gt: Path, key: tuple[int, int, int]) -> list[np.ndarray]:
    """Read gt.mat into the arrays of its index."""
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
    except Exception as error:  # scipy raises whatever it stumbles over
        raise ValueError(f"{gt}: not SynthText's gt.mat ({error!r}); expected {LAYOUT}") from None
    if min(count["train"], count["heldout"]) < 1:
        raise ValueError(
            f"{gt}: expected annotated pictures in both splits, got {len(names)} altogether"
        )
    lengths = [(len(n), len(t), len(b)) for n, t, b in zip(names, texts, boxes[1:], strict=True)]
    ends = np.cumsum([(0, 0, 0), *lengths], axis=0, dtype=np.int64)
    count |= dict(zip(("names", "text", "quads"), ends[-1].tolist(), strict=True))
    count |= {"pictures": len(names)} | dict(zip(HEAD, key, strict=False))
    flat = (np.frombuffer(b"".join(parts), np.uint8) for parts in (names, texts))
    return [np.array([count[name] for name in HEAD]), np.concatenate(boxes), ends, *flat]


class SynthText(Source):
    """SynthText's own layout: gt.mat beside the folders of pictures that it names.

    Words are in NFC and cut to L. Those of which at most half is in their picture are left out. One
    picture in ten is held out.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        self.split = split
        self.table = open_index(self.root)
        head, train = self.table.head, self.table.head["train"]
        self.rows = range(train) if split == "train" else range(train, head["pictures"])
        counts = {MISMATCHES: "mismatches", TWICE: "twice", MARKED: "marked", CUT: "cut"}
        self.notes = Counter({why: head[f"{name}_{split}"] for why, name in counts.items()})
        first = [self.name(k) for k in range(min(100, len(self)))]
        for folder in (self.root, self.root / "all_images"):
            if any((folder / name).is_file() for name in first):
                self.folder = folder
                break
        else:
            raise FileNotFoundError(
                f"{self.root / first[0]}: not found, nor any of the first {len(first)} pictures; "
                f"expected {LAYOUT}"
            )

    def __reduce__(self) -> tuple[type[SynthText], tuple[Path, str]]:
        return SynthText, (self.root, self.split)  # a worker maps the file itself

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        start, stop = self.table.ends[self.rows[index] :][:2, 0]
        return self.table.names[start:stop].tobytes().decode()

    def read(self, index: int, min_side: int | None = None) -> Sample:
        picture = open_picture(self.folder / self.name(index), min_side)
        (_, start, first), (_, stop, last) = self.table.ends[self.rows[index] :][:2].tolist()
        words = self.table.text[start:stop].tobytes().decode().split("\n")[:-1]
        offset = 8 * len(HEAD) + 32 * first
        quads = np.fromfile(self.table.path, np.float32, 8 * (last - first), offset=offset)
        quads = quads.reshape(-1, 4, 2)
        readable = np.array(words, str) != ""
        polygons, ignored, notes = place_polygons(
            quads[readable], quads[~readable], picture, as_shown=False
        )
        visible = split_visible(polygons, ignored, *picture.image.size)
        known = list(filter(None, words))
        kept = [word for word, inside in zip(known, visible.inside, strict=True) if inside]
        return Sample(
            np.array(picture.image),
            kept,
            bounding_quads(visible.polygons),
            len(known) - len(kept),
            bounding_quads(visible.ignored),
            notes,
        )

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
        spelled = np.zeros(sys.maxunicode + 1, np.int32)
        spelled[[ord(char) for char in alphabet.index if len(char) == 1]] = 1
        found = [np.empty(0, bool)]
        for codes, words in self.chunks():
            breaks = np.flatnonzero(codes == ord("\n"))
            known = np.diff(np.cumsum(spelled[codes])[breaks], prepend=0)  # characters a word
            lengths = np.diff(breaks, prepend=-1) - 1
            notes[UNKNOWN] += int(((known == 0) & (lengths > 0)).sum())
            notes[PARTLY] += int(((known > 0) & (known < lengths)).sum())
            found.append(np.diff(np.cumsum(np.append(0, known > 0))[words]) > 0)
        return np.concatenate(found)

    def characters(self) -> Counter[str]:
        count = np.zeros(sys.maxunicode + 1, np.int64)
        for codes, _ in self.chunks():
            count += np.bincount(codes, minlength=len(count))
        count[ord("\n")] = 0
        return Counter({chr(code): int(count[code]) for code in np.flatnonzero(count)})
