"""Pictures for text detectors: polygons of any number of points instead of quads."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from data_stub import Source
from readers import open_source
from readers.folder import Folder
from readers.mixed import Mixed
from readers.pictures import DetectionSample

__all__ = ["DetectionDataset", "DetectionSample", "FromSource", "open_detection"]


class DetectionDataset(Protocol):
    """Detection samples by number, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> DetectionSample: ...

    def name(self, index: int, /) -> str: ...


class FromSource:
    """A source's samples as detection samples.

    Raises: ValueError if a picture has words without quads or polygons.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        for part in source.parts if isinstance(source, Mixed) else [source]:
            if isinstance(part, Folder):
                part.require_polygons()

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """The picture's file name without folder and ending."""
        name = self.source.name(index)
        return name.replace(" ", "_") if self.source.root == "synth" else Path(name).stem

    def __getitem__(self, index: int) -> DetectionSample:
        source = self.source
        if isinstance(source, Mixed):
            source, index = source.locate(index)
        if isinstance(source, Folder):
            return source.read_polygons(index)
        sample = source[index]
        assert sample.quads is not None  # SynthText and the renderer have them
        regions = np.empty((0, 4, 2), np.float32) if sample.ignored is None else sample.ignored
        ignored = np.arange(len(sample.quads) + len(regions)) >= len(sample.quads)
        return DetectionSample(Image.fromarray(sample.image), [*sample.quads, *regions], ignored)


def open_detection(
    spec: str, split: str, size: int = 256, count: int = 1000, seed: int = 0
) -> DetectionDataset:
    """Open one split of a data set for a detector.

    Args: as of `readers.open_source`.
    Raises: ValueError or OSError, which name what is wrong.
    """
    return FromSource(open_source(spec, split, size, count, seed))
