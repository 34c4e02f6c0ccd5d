"""What data sets of pictures in a folder have in common."""

from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vlpt
from data_stub import Sample, Source
from readers.alphabet import count_learnable
from readers.pictures import open_image


class Annotation(NamedTuple):
    """One annotated picture, not yet read."""

    path: Path
    words: list[str]
    quads: np.ndarray | None  # (words, 4, 2) pixels
    left_out: tuple[str, ...] = ()  # what of its annotation is not here
    ignored: np.ndarray | None = None  # (regions, 4, 2) pixels


class Folder(Source):
    """Annotated pictures on disk; a subclass lists them all, one in ten is held out."""

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        items = self.list_items()
        if len(items) < 2:
            raise ValueError(f"{root}: expected 2 or more annotated pictures, got {len(items)}")
        held = [self.is_heldout(k, item) for k, item in enumerate(items)]
        held[-1] |= not any(held)
        wanted = split == "heldout"
        self.items = [item for item, out in zip(items, held, strict=True) if out == wanted]
        self.notes = Counter(reason for item in self.items for reason in item.left_out)

    @abstractmethod
    def list_items(self) -> list[Annotation]:
        """All annotated pictures, in an order that only the files decide."""

    def is_heldout(self, position: int, item: Annotation) -> bool:
        return position % 10 == 9

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int, min_side: int | None = None) -> Sample:
        path, words, quads, _, ignored = self.items[index]
        image, scale = open_image(path, min_side)
        quads, ignored = (x if x is None else x * np.float32(scale) for x in (quads, ignored))
        return Sample(np.array(image), words, quads, ignored=ignored)

    def learnable(self, alphabet: vlpt.Alphabet, notes: Counter[str]) -> np.ndarray:
        return np.array([count_learnable(i.words, alphabet, notes) > 0 for i in self.items])

    def characters(self) -> Counter[str]:
        words = (word for item in self.items for word in item.words)
        return Counter(char for word in words for char in vlpt.normalize_text(word))

    def name(self, index: int) -> str:
        return str(self.items[index].path)
