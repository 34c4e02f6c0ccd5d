"""LSVT and ArT, street and arbitrarily shaped text, mostly Chinese.

https://rrc.cvc.uab.es/?ch=16 has LSVT: 30,000 training pictures with all their texts, and 400,000
with one text of interest, without saying where it is. https://rrc.cvc.uab.es/?ch=14 has ArT, 5,603
training pictures in the same form.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from readers.files import is_unreadable, read_lines, require
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
from readers.pictures import is_picture
from readers.polygons import to_polygon


class LSVT(Folder):
    """LSVT's or ArT's training pictures; every tenth one is held out.

    The path is a folder, of which all label files are read, or one label file. A text that is
    marked illegible or "###" is an ignored region. The weak half of LSVT has no regions at all.
    """

    LAYOUT = (
        "ROOT/train_full_labels.json beside ROOT/train_full_images_0/gt_0.jpg and so on, "
        "ROOT/train_weak_labels.json beside ROOT/train_weak_images_0/gt_0.jpg and so on, or "
        "ROOT/train_labels.json beside ROOT/train_images/gt_0.jpg and so on"
    )
    ENTRY = '{"gt_0": [{"transcription": text, "points": [[x, y], ...], "illegibility": bool}]}'

    def list_items(self) -> list[Annotation]:
        labels = [require(self.root, self.LAYOUT)]
        if self.root.is_dir():
            labels = sorted(self.root.glob("train*_labels.json"))
        if not labels:
            raise ValueError(f"{self.root}: has no label file; expected {self.LAYOUT}")
        return [item for path in labels for item in self.read_labels(path)]

    def read_labels(self, path: Path) -> Iterator[Annotation]:
        """All pictures of a label file, in its order."""
        try:
            entries = json.loads("\n".join(read_lines(path, self.LAYOUT)))
            names = {name: list(texts) for name, texts in entries.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}: expected {self.ENTRY}, got other content ({error})"
            ) from None
        pictures = dict[str, Path]()
        folders = path.parent.glob(path.stem.replace("labels", "images") + "*")
        for folder in sorted(filter(Path.is_dir, folders)):
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
