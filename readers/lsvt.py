"""LSVT and ArT, street and arbitrarily shaped text, mostly Chinese.

https://rrc.cvc.uab.es/?ch=16 has LSVT: 30,000 training pictures with all their texts, and 400,000
with one text of interest, without saying where it is. https://rrc.cvc.uab.es/?ch=14 has ArT, 5,603
training pictures in the same form. LSVT's labels take long and much memory to read, so that they
have an index (readers/index.py).
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vlpt
from readers.files import is_unreadable, require
from readers.folder import (
    BAD_LINES,
    FEW_POINTS,
    MARKED,
    NO_LABEL,
    NO_PICTURE,
    NO_TEXT,
    OTHER_NAMES,
    SAME_NAME,
    Annotation,
    Folder,
    visible_files,
)
from readers.index import (
    Content,
    Index,
    IndexedAnnotations,
    count_characters,
    find_learnable,
    open_index,
    pack_annotations,
)
from readers.pictures import is_picture
from readers.polygons import to_polygon

MIN_INDEXED = 10_000_000  # bytes of labels; fewer are read in a second each time


class LSVT(Folder):
    """LSVT's or ArT's training pictures; every tenth one is held out.

    The path is a folder, of which all label files are read, or one label file. A text that is
    marked illegible or "###" is an ignored region. The weak part of LSVT has no regions at all.
    """

    LAYOUT = (
        "PATH/train_full_labels.json beside PATH/train_full_images_0/gt_0.jpg and so on, "
        "PATH/train_weak_labels.json beside PATH/train_weak_images_0/gt_0.jpg and so on, or "
        "PATH/train_labels.json beside PATH/train_images/gt_0.jpg and so on"
    )
    ENTRY = '{"gt_0": [{"transcription": text, "points": [[x, y], ...], "illegibility": bool}]}'

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        self.split = split
        self.table: Index | None = None
        labels = self.list_labels()
        if sum(path.stat().st_size for path in labels) < MIN_INDEXED:
            super().__init__(root, split)
            return
        folders = [folder for path in labels for folder in self.list_folders(path)]
        key = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in labels]
        key += [
            [folder.name, folder.stat().st_mtime_ns] for folder in folders
        ]  # a file more or less
        base = self.root / "lsvt" if self.root.is_dir() else self.root
        self.prefix = str(base.parent / "_")[:-1]  # of a path in it, which is none in "."
        self.table = open_index(base.with_name(f"{base.name}.{split}"), key, self.read_annotation)
        self.items = IndexedAnnotations(self.table, base.parent)
        self.as_shown = self.table.about["as_shown"]
        self.notes = Counter(self.table.about["notes"])
        self.left_out = [f"{self.prefix}{where}" for where in self.table.about["named"]]

    def read_annotation(self) -> Content:
        """Read all labels for the index."""
        super().__init__(self.root, self.split)
        folder = self.root if self.root.is_dir() else self.root.parent
        named = [where.removeprefix(self.prefix) for where in self.left_out]  # it may be moved
        about = {"as_shown": self.as_shown, "notes": self.notes, "named": named}
        return about, pack_annotations(self.items, folder)

    def __reduce__(self) -> tuple[type[LSVT], tuple[Path, str]]:
        return LSVT, (self.root, self.split)  # a worker maps the index itself

    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        if isinstance(self.items, IndexedAnnotations):
            return find_learnable(self.items.chunks(), alphabet)
        return super().learnable(alphabet)

    def characters(self) -> Counter[str]:
        if isinstance(self.items, IndexedAnnotations):
            return count_characters(self.items.chunks())
        return super().characters()

    def list_labels(self) -> list[Path]:
        """The label files. Raises: OSError or ValueError if there is none."""
        labels = [require(self.root, self.LAYOUT)]
        if self.root.is_dir():
            labels = sorted(self.root.glob("train*_labels.json"))
        if not labels:
            raise ValueError(f"{self.root}: expected {self.LAYOUT}, got no label file")
        return labels

    def list_folders(self, label: Path) -> list[Path]:
        """The folders of a label file's pictures."""
        pattern = f"{glob.escape(self.name_folders(label))}*"
        return sorted(filter(Path.is_dir, label.parent.glob(pattern)))

    def name_folders(self, label: Path) -> str:
        """What the names of the folders of a label file's pictures begin with."""
        return label.stem.replace("labels", "images")

    def list_items(self) -> list[Annotation]:
        labels = self.list_labels()
        if not any(map(self.list_folders, labels)):
            folders = ", ".join(f"{self.name_folders(label)}*" for label in labels)
            raise FileNotFoundError(
                f"{self.root}: expected {self.LAYOUT}, got no folder of pictures named {folders}"
            )
        return [item for path in labels for item in self.read_labels(path)]

    def read_labels(self, path: Path) -> Iterator[Annotation]:
        """All pictures of a label file, in its order."""
        try:
            entries = json.loads(path.read_text("utf-8-sig"))
            names = {name: list(texts) for name, texts in entries.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected {self.ENTRY}, got other content ({error})"
            ) from None
        pictures = dict[str, Path]()
        for folder in self.list_folders(path):
            for file in visible_files(folder):
                if not is_picture(file):
                    self.leave_out(file, OTHER_NAMES)
                elif file.stem in pictures:
                    self.leave_out(file, SAME_NAME)
                else:
                    pictures[file.stem] = file
        for name in sorted(pictures.keys() - names.keys()):
            self.leave_out(pictures[name], NO_LABEL)
        for name, texts in names.items():
            if name in pictures:
                yield self.read_item(pictures[name], f"{path}: {name}", texts)
            else:
                self.leave_out(f"{path}: {name}", NO_PICTURE)

    def read_item(self, image: Path, where: str, texts: list[Any]) -> Annotation:
        words, left_out = list[str](), list[str]()
        polygons, ignored = list[np.ndarray](), list[np.ndarray]()
        placed = any(isinstance(text, dict) and "points" in text for text in texts)
        for text in texts:
            try:
                word = text["transcription"]
                word.encode()  # fails for half a surrogate pair
                if placed and len(text["points"]) < 3:
                    self.leave_out(where, FEW_POINTS)
                    continue
                polygon = [to_polygon(text["points"])] if placed else []
            except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
                self.leave_out(where, BAD_LINES)
                continue
            if text.get("illegibility") or is_unreadable(word):
                left_out.append(MARKED)
                ignored += polygon
            elif not word.strip():
                left_out.append(NO_TEXT)
                ignored += polygon
            else:
                words.append(word)
                polygons += polygon
        if not placed and texts:
            return Annotation(image, words, None, tuple(left_out))
        return Annotation(image, words, polygons, tuple(left_out), ignored)
