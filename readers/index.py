"""Indexes: what is needed of a large annotation, in one file that all processes map into memory.

Reading the annotation of SynthText or LSVT takes long and much memory. So SynthText's is read once
and LSVT's once per split, and what is needed of it is written to an index beside it. Later starts
and all worker processes map this file. An index stores the size and time of its annotation, and is
rebuilt when they change.
"""

import json
import math
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

import vlpt
from readers.alphabet import CUT, PARTLY, UNKNOWN
from readers.folder import Annotation

MAGIC = b"vlpt-ix4"  # the last character is the format's version


class Index(NamedTuple):
    """An index file: the magic bytes, the length of the header, the header as JSON, the arrays.

    Each of these parts fills whole words of 8 bytes. The rows of the array `ends` say how much of
    the other arrays comes before each picture. If the file is replaced, an index that was opened
    before stays as it was.
    """

    path: Path
    about: dict[str, Any]  # small things, from the header
    arrays: dict[str, np.ndarray]  # mapped: processes share what they touch of them


Content = tuple[Mapping[str, Any], Mapping[str, np.ndarray]]  # `about` and `arrays` of an index


def open_index(annotation: Path, key: list[Any], build: Callable[[], Content]) -> Index:
    """Map the index of an annotation; build it first if there is none or one of another key.

    Args:
        annotation: the index lies beside this path, and is named after it.
        key: what tells this annotation from another one, for example its size and time; JSON.
        build: reads the annotation.
    Raises: ValueError if no index can be written, and whatever `build` raises.
    """
    places = index_places(annotation)
    for path in places:
        with suppress(OSError, ValueError):
            return read_index(path, key)
    start = time.perf_counter()
    content = build()
    failures = []
    for path in places:
        try:
            write_index(path, key, content)
            index = read_index(path, key)
        except (OSError, ValueError) as error:
            failures.append(str(error))
        else:
            print(
                f"wrote the index {path} in {time.perf_counter() - start:.0f} s; later runs use it"
            )
            return index
    raise ValueError(
        f"{annotation}: expected a place to write its index, got none: {'; '.join(failures)}"
    )


def index_places(annotation: Path) -> list[Path]:
    """Where an index may be: beside its annotation, or in a cache if that cannot be written."""
    places = [annotation.with_name(f"{annotation.name}.index")]
    with suppress(RuntimeError):  # a process without a home folder has no cache
        cache = Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlpt"
        places.append(cache / f"{zlib.crc32(bytes(annotation.resolve())):08x}.index")
    return places


def read_index(path: Path, key: list[Any]) -> Index:
    """Map an index file. Raises: OSError; ValueError if it is not whole or of another key."""
    wrong = ValueError(f"{path}: not whole, or of another annotation")
    data = np.memmap(path, np.uint8, "r")
    if len(data) < 16 or data[:8].tobytes() != MAGIC:
        raise wrong
    offset = 16 + int(data[8:16].view(np.int64)[0])
    head = json.loads(data[16:offset].tobytes())  # its error is a ValueError, too
    if head.get("key") != key:
        raise wrong
    arrays = {}
    for name, kind, shape in head["arrays"]:
        size = np.dtype(kind).itemsize * math.prod(shape)
        arrays[name] = data[offset : offset + size].view(kind).reshape(shape)
        offset += -(-size // 8) * 8
    if offset != len(data):
        raise wrong
    ends = arrays["ends"]
    if ends[0].any() or (np.diff(ends, axis=0) < 0).any():
        raise wrong
    return Index(path, head["about"], arrays)


def write_index(path: Path, key: list[Any], content: Content) -> None:
    """Write an index, the file whole or not at all."""
    about, arrays = content
    described = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    text = json.dumps({"key": key, "about": about, "arrays": described}).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(bytes(-array.nbytes % 8))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------------- the words of an index

Chunks = Iterator[tuple[np.ndarray, np.ndarray]]


def read_chunks(text: np.ndarray, ends: np.ndarray) -> Chunks:
    """The words of 10,000 pictures at a time.

    Args:
        text: (bytes,) uint8, UTF-8: all words, each with a line break after.
        ends: (pictures + 1, 2) int64: how many bytes of `text` and how many words come before.
    Returns: the code points of the words, each word with a line break after, and the numbers of
        words up to each picture, from 0.
    """
    for start in range(0, len(ends) - 1, 10_000):
        part = ends[start : start + 10_001]
        words = text[part[0, 0] : part[-1, 0]].tobytes().decode()
        yield np.frombuffer(words.encode("utf-32-le"), np.uint32), part[:, 1] - part[0, 1]


def find_learnable(chunks: Chunks, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
    """`Source.learnable` of these words, as `readers.alphabet.count_learnable` decides."""
    notes = Counter[str]()
    spelled = np.zeros(sys.maxunicode + 1, np.int32)
    spelled[[ord(char) for char in alphabet.index if len(char) == 1]] = 1
    found = [np.empty(0, bool)]
    for codes, words in chunks:
        breaks = np.flatnonzero(codes == ord("\n"))
        lengths = np.diff(breaks, prepend=-1) - 1
        spells = spelled[codes]
        if lengths.max(initial=0) > vlpt.MAX_CHARS:  # what is cut off does not count
            place = np.arange(len(codes)) - np.repeat(breaks - lengths, lengths + 1)  # in its word
            spells = spells * (place < vlpt.MAX_CHARS)
        known = np.diff(np.cumsum(spells)[breaks], prepend=0)  # characters a word
        kept = np.minimum(lengths, vlpt.MAX_CHARS)
        notes[UNKNOWN] += int(((known == 0) & (lengths > 0)).sum())
        notes[PARTLY] += int(((known > 0) & (known < kept)).sum())
        notes[CUT] += int(((known > 0) & (kept < lengths)).sum())
        found.append(np.diff(np.cumsum(np.append(0, known > 0))[words]) > 0)
    return np.concatenate(found), notes


def count_characters(chunks: Chunks) -> Counter[str]:
    """How often each character occurs in the words."""
    count = np.zeros(sys.maxunicode + 1, np.int64)
    for codes, _ in chunks:
        count += np.bincount(codes, minlength=len(count))
    count[ord("\n")] = 0
    return Counter({chr(code): int(count[code]) for code in np.flatnonzero(count)})


# --------------------------------------------------------------------------- lists of annotations


def pack_annotations(items: Sequence[Annotation], folder: Path) -> dict[str, np.ndarray]:
    """A list of annotated pictures in a folder as arrays for an index, for `IndexedAnnotations`.

    What is counted in `left_out` is not kept, and neither is `heldout`.
    """
    names, texts, sizes, rows = [], [], [], [(0, 0, 0, 0, 0)]
    points = [np.empty((0, 2), np.float32)]
    for item in items:
        name = str(item.path.relative_to(folder)).encode()
        words = [vlpt.normalize_text(word).replace("\n", " ") for word in item.words]
        text = "".join(f"{word}\n" for word in words).encode()
        polygons = [] if item.polygons is None else [*item.polygons, *item.ignored]
        lengths = [len(polygon) for polygon in polygons]
        names.append(name)
        texts.append(text)
        sizes += lengths
        points += polygons
        rows.append((len(name), len(text), len(words), len(lengths), sum(lengths)))
    return {
        "ends": np.cumsum(rows, axis=0, dtype=np.int64),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "placed": np.array([item.polygons is not None for item in items], bool),
        "sizes": np.array(sizes, np.int32),  # points of each polygon; the words' come first
        "points": np.concatenate(points),  # float32; the bulk; only what is used is in memory
    }


class IndexedAnnotations(Sequence[Annotation]):
    """The annotated pictures that `pack_annotations` put into an index; words are in NFC."""

    def __init__(self, table: Index, folder: Path) -> None:
        self.table = table
        self.folder = folder
        self.ends = table.arrays["ends"]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Annotation]: ...
    def __getitem__(self, index: int | slice) -> Annotation | list[Annotation]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        row = range(len(self))[index]
        names, text, _, polygons, points = (slice(*pair) for pair in self.ends[row : row + 2].T)
        arrays = self.table.arrays
        path = self.folder / arrays["names"][names].tobytes().decode()
        spelled = arrays["text"][text].tobytes().decode().split("\n")[:-1]
        if not arrays["placed"][row]:
            return Annotation(path, spelled, None)
        flat = np.array(arrays["points"][points])  # a copy, which can be changed
        parts = np.split(flat, np.cumsum(arrays["sizes"][polygons]))[:-1]
        return Annotation(path, spelled, parts[: len(spelled)], (), parts[len(spelled) :])

    def chunks(self) -> Chunks:
        return read_chunks(self.table.arrays["text"], self.ends[:, 1:3])
