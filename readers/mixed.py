"""Several data sets as one source."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

import vlpt
from data_stub import Sample, Source


class Mixed(Source):
    """The pictures of several sources, each once, interleaved in proportion to the sources' sizes.

    So the first pictures, which a contact sheet shows, come from every source.
    """

    def __init__(self, spec: str, parts: Sequence[Source]) -> None:
        self.root = spec
        self.parts = parts
        self.notes = sum((part.notes for part in parts), Counter[str]())
        self.left_out = [line for part in parts for line in part.left_out]
        lengths = [len(part) for part in parts]
        self.starts = np.cumsum([0, *lengths])
        places = [(np.arange(length) + 0.5) / length for length in lengths]
        self.order = np.argsort(np.concatenate(places), kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def locate(self, index: int) -> tuple[Source, int]:
        """The source that has a picture, and the picture's number there."""
        row = int(self.order[index])
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[number], row - int(self.starts[number])

    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        found, notes = zip(*(part.learnable(alphabet) for part in self.parts), strict=True)
        return np.concatenate(found)[self.order], sum(notes, Counter[str]())

    def characters(self) -> Counter[str]:
        return sum((part.characters() for part in self.parts), Counter[str]())

    def name(self, index: int) -> str:
        part, number = self.locate(index)
        return part.name(number)

    def read(self, index: int, min_side: int | None = None) -> Sample:
        part, number = self.locate(index)
        return part.read(number, min_side)
