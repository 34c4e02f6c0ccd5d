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
from readers.polygons import to_quads

REPEATED = "words annotated more than once in the same place"
SOME_QUADS = "pictures with quads for some of their words only, which are not used"


class JsonLines(Folder):
    """One JSON object a line; every tenth picture is held out."""

    LAYOUT = 'a file of lines like {"image": path, "words": [...], "quads": optional}'
    ENTRY = '{"image": path, "words": [text], "quads": [[[x, y] * 4]] or nothing}'

    def list_items(self) -> list[Annotation]:
        entries = defaultdict[Path, list[tuple[list[str], np.ndarray | None]]](list)
        paths = dict[str, Path]()
        for number, line in enumerate(read_lines(self.root, self.LAYOUT), 1):
            if not line.strip():
                continue
            try:
                path, words, quads = self.read_entry(line)
            except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
                where = f"{self.root}:{number}"
                raise ValueError(
                    f"{where}: expected {self.ENTRY}, got {line[:80]!r} ({error})"
                ) from None
            same = paths.setdefault(os.path.abspath(path), path)  # a picture is as first named
            entries[same].append((words, quads))
        return [merge_entries(path, lines) for path, lines in entries.items()]

    def read_entry(self, line: str) -> tuple[Path, list[str], np.ndarray | None]:
        """The picture, the words and the quads of a line."""
        entry = json.loads(line)
        words, quads = entry["words"], entry.get("quads")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("words is not a list of strings")
        "".join([entry["image"], *words]).encode()  # fails for half a surrogate pair
        path = Path(os.path.normpath(self.root.parent / entry["image"]))
        if quads is None:
            return path, words, None
        shape = np.shape(quads)
        if shape != ((len(words), 4, 2) if words else (0,)):
            raise ValueError(f"quads: expected {len(words)} of four [x, y], got shape {shape}")
        return path, words, to_quads(quads, len(words))


def merge_entries(path: Path, lines: list[tuple[list[str], np.ndarray | None]]) -> Annotation:
    """One annotation of all lines that name a picture."""
    all_words = [word for words, _ in lines for word in words]
    quads = [quads for words, quads in lines if quads is not None]
    if len(quads) < sum(bool(words) or quads is not None for words, quads in lines):
        words = [word for word in all_words if not is_unreadable(word)]
        left_out = [MARKED] * (len(all_words) - len(words)) + [SOME_QUADS] * bool(quads)
        return Annotation(path, words, None, tuple(left_out))
    corners = np.concatenate([np.empty((0, 4, 2), np.float32), *quads])
    first = dict[tuple[str, bytes], int]()
    for k, (word, quad) in enumerate(zip(all_words, corners, strict=True)):
        first.setdefault((word, quad.tobytes()), k)
    left_out = [REPEATED] * (len(all_words) - len(first))
    kept, ignored = list[int](), list[int]()
    for k in first.values():
        word = all_words[k]
        if is_unreadable(word) or not word.strip():
            left_out.append(MARKED if word.strip() else NO_TEXT)
            ignored.append(k)
        else:
            kept.append(k)
    words = [all_words[k] for k in kept]
    return Annotation(path, words, corners[kept], tuple(left_out), corners[ignored])
