"""What data sets of pictures in a folder have in common."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import vlpt
from data_stub import Sample, Source
from readers.alphabet import count_learnable
from readers.pictures import (
    FIT_SHOWN,
    FIT_STORED,
    DetectionSample,
    open_picture,
    orientation_note,
    place_polygons,
    read_orientation,
)
from readers.polygons import Polygons, Visible, bounding_quads, split_visible

# Why something of a data set is not in its samples.
MARKED = "words marked unreadable"
NO_LABEL = "pictures without a label"
NO_PICTURE = "labels without a picture"
# The end of a message about too few held-out pictures.
EVERY_TENTH = (
    "without a split of its own, a data set holds out every tenth picture, so it needs 20 or more"
)
OTHER_NAMES = "files with an unexpected name"
SAME_NAME = "pictures that share their label with another one"
BAD_LINES = "lines of labels that cannot be read"
FEW_POINTS = "regions with fewer than 3 points"
NO_TEXT = "regions without a transcription"

SURVEYED = 1000  # pictures whose orientation is looked at before the first one is read


class Annotation(NamedTuple):
    """One annotated picture, not yet read."""

    path: Path
    words: list[str]
    polygons: Polygons | None  # of the words, in pixels; None if it is unknown where they are
    left_out: tuple[str, ...] = ()  # what of its annotation is not here
    ignored: Polygons = ()  # regions of unreadable text
    heldout: bool | None = None  # for data sets that have their own split


class Folder(Source):
    """Annotated pictures on disk; a subclass lists them all.

    Every tenth picture is held out unless the data set has a split of its own; if that leaves none,
    the last one is. Words of which at most half is in their picture are left out when it is read.

    A photograph with an EXIF orientation may have been annotated on its raw pixels or as viewers
    show it. If a picture's quads fit both, the majority of the pictures that fit only one decides;
    without such pictures the raw pixels are assumed, as in public data sets.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root: Path = Path(root)
        self.omitted: list[tuple[str, str, bool]] = []  # where, why, whether it was held out
        items = self.list_items()
        want_heldout = split == "heldout"
        omitted = [(where, why) for where, why, heldout in self.omitted if heldout == want_heldout]
        self.left_out = [f"{where}: {why}" for where, why in omitted]
        if len(items) < 2:
            reasons = Counter(why for _, why, _ in self.omitted)
            also = "".join(f"; {why}: {count:,}" for why, count in reasons.items())
            raise ValueError(
                f"{root}: expected at least 2 annotated pictures, got {len(items)}{also}"
            )
        is_heldout = [
            k % 10 == 9 if item.heldout is None else item.heldout for k, item in enumerate(items)
        ]
        is_heldout[-1] |= not any(is_heldout)
        self.as_shown = annotated_as_shown(items)
        self.items: Sequence[Annotation] = [
            item for item, heldout in zip(items, is_heldout, strict=True) if heldout == want_heldout
        ]
        self.notes = Counter(reason for item in self.items for reason in item.left_out)
        self.notes.update(why for _, why in omitted)

    @abstractmethod
    def list_items(self) -> list[Annotation]:
        """All annotated pictures, in an order that only the files decide.

        Calls `leave_out` for what is not among them.
        """

    def leave_out(self, where: object, why: str, heldout: bool = False) -> None:
        """Count and name something that is in no sample."""
        self.omitted.append((str(where), why, heldout))

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int, min_side: int | None = None) -> Sample:
        return read_sample(self.items[index], self.as_shown, min_side)

    def require_polygons(self) -> None:
        """Raises: ValueError if the data set does not say where the words of a picture are."""
        for item in self.items:
            if item.polygons is None:
                raise ValueError(f"{item.path}: expected a quad for each word, got none")

    def read_polygons(self, index: int) -> DetectionSample:
        """Read a picture for a detector, with polygons of any number of points."""
        image, visible, _ = open_annotated(self.items[index], self.as_shown)
        polygons = [*visible.polygons, *visible.ignored]
        return DetectionSample(image, polygons, np.arange(len(polygons)) >= len(visible.polygons))

    def learnable(self, alphabet: vlpt.Alphabet) -> tuple[np.ndarray, Counter[str]]:
        notes = Counter[str]()
        found = [count_learnable(item.words, alphabet, notes) > 0 for item in self.items]
        return np.array(found, bool), notes

    def characters(self) -> Counter[str]:
        words = (word for item in self.items for word in item.words)
        return Counter(char for word in words for char in vlpt.normalize_text(word))

    def name(self, index: int) -> str:
        return str(self.items[index].path)


def open_annotated(
    item: Annotation, as_shown: bool, min_side: int | None = None
) -> tuple[Image.Image, Visible, tuple[str, ...]]:
    """Open a picture whose words have polygons, and find these in it.

    Args: as_shown: as of `readers.pictures.place_polygons`.
    """
    assert item.polygons is not None
    picture = open_picture(item.path, min_side)
    polygons, ignored, notes = place_polygons(item.polygons, item.ignored, picture, as_shown)
    return picture.image, split_visible(polygons, ignored, *picture.image.size), notes


def read_sample(item: Annotation, as_shown: bool, min_side: int | None = None) -> Sample:
    """Read a picture with the words that are in it, see `open_annotated`."""
    if item.polygons is None:
        return Sample(np.array(open_picture(item.path, min_side).image), item.words, None)
    image, visible, notes = open_annotated(item, as_shown, min_side)
    words = [word for word, kept in zip(item.words, visible.inside, strict=True) if kept]
    return Sample(
        np.array(image),
        words,
        bounding_quads(visible.polygons),
        len(item.words) - len(words),
        bounding_quads(visible.ignored),
        notes,
    )


def annotated_as_shown(items: Sequence[Annotation]) -> bool:
    """Whether quads lie on photographs as shown, by those of the first pictures that fit so only.

    Returns: False if as many or more fit their raw pixels only.
    """
    votes = Counter[str]()
    for item in items[:SURVEYED]:
        if item.polygons is not None:
            stored, orientation = read_orientation(item.path)
            if orientation > 1:
                votes[orientation_note(item.polygons, item.ignored, stored, orientation)] += 1
    return votes[FIT_SHOWN] > votes[FIT_STORED]


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder that are not hidden, sorted by name."""
    with os.scandir(folder) as entries:  # faster than Path.iterdir, which asks for each file
        names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    return [folder / name for name in names]
