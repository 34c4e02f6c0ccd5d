"""Your own pictures: a file with one JSON object a line.

    {"image": "a.jpg", "words": ["EXIT", "NO"], "quads": [[[x, y], [x, y], [x, y], [x, y]], ...]}

Image paths are relative to the file. "quads" may be missing: pre-training needs only the words.
Several lines may name the same picture, which then has the words of all of them. A word that is
marked "###" (unreadable) or empty is not learned; its quad, if there is one, is a region that a
detector ignores.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from readers.files import is_unreadable, read_lines
from readers.folder import MARKED, NO_TEXT, Annotation, Folder
from readers.polygons import to_polygon

REPEATED = "words annotated more than once in the same place"
SOME_QUADS = "pictures with quads for some of their words only, which are not used"

Line = tuple[list[str], list[np.ndarray] | None]  # the words, and their quads (4, 2) if it has any


class JsonLines(Folder):
    """One JSON object a line; every tenth picture is held out."""

    LAYOUT = 'a file of lines like {"image": path, "words": [...], "quads": optional}'
    ENTRY = '{"image": path, "words": [text], "quads": [[[x, y] * 4]] or nothing}'

    def list_items(self) -> list[Annotation]:
        entries = defaultdict[Path, list[Line]](list)
        paths = dict[str, Path]()
        for number, line in enumerate(read_lines(self.root, self.LAYOUT), 1):
            if not line.strip():
                continue
            try:
                path, words, quads = self.read_entry(line)
                real = os.path.realpath(path)
            except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
                where = f"{self.root}:{number}"
                raise ValueError(
                    f"{where}: expected {self.ENTRY}, got {line[:80]!r} ({error})"
                ) from None
            same = paths.setdefault(real, path)  # a picture is as first named
            entries[same].append((words, quads))
        return [merge_entries(path, lines) for path, lines in entries.items()]

    def read_entry(self, line: str) -> tuple[Path, list[str], list[np.ndarray] | None]:
        """The picture, the words and the quads of a line."""
        entry = json.loads(line)
        words, quads = entry["words"], entry.get("quads")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("words is not a list of strings")
        "".join([entry["image"], *words]).encode()  # fails for half a surrogate pair
        path = self.root.parent / entry["image"]
        if quads is None:
            return path, words, None
        shape = np.shape(quads)
        if shape != ((len(words), 4, 2) if words else (0,)):
            raise ValueError(f"quads: expected {len(words)} of four [x, y], got shape {shape}")
        return path, words, [to_polygon(quad) for quad in quads]


def merge_entries(path: Path, lines: list[Line]) -> Annotation:
    """One annotation of all lines that name a picture."""
    all_words = [word for words, _ in lines for word in words]
    if any(words and quads is None for words, quads in lines):
        words = [word for word in all_words if not is_unreadable(word)]
        left_out = [MARKED] * (len(all_words) - len(words))
        left_out += [SOME_QUADS] * any(quads is not None for _, quads in lines)
        return Annotation(path, words, None, tuple(left_out))
    all_quads = [quad for _, quads in lines for quad in quads or []]
    places = {(word, quad.tobytes()): quad for word, quad in zip(all_words, all_quads, strict=True)}
    left_out = [REPEATED] * (len(all_words) - len(places))
    words, quads, regions = list[str](), list[np.ndarray](), list[np.ndarray]()
    for (word, _), quad in places.items():
        if is_unreadable(word) or not word.strip():
            left_out.append(MARKED if word.strip() else NO_TEXT)
            regions.append(quad)
        else:
            words.append(word)
            quads.append(quad)
    return Annotation(path, words, quads, tuple(left_out), regions)
