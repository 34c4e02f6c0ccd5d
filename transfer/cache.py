"""Decoded pictures kept in memory, so that not every training crop decodes its picture again."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from readers.detection import DetectionDataset, DetectionSample

CHUNK = 64  # pictures that are decoded at once


class CachedSource:
    """Decodes the first pictures of a source when it is created and keeps as many as fit into
    `gigabytes`.

    Worker processes that are forked later share this memory. A picture that cannot be read is left
    out, so that reading it raises the same error as without the cache.

    Args:
        source: where the pictures come from.
        gigabytes: how much memory their pixels may take; the rest is read whenever it is needed.
        threads: how many pictures are decoded at the same time.
        indices: the pictures that will be needed, if these are not all; the first ones are kept.
    """

    def __init__(
        self,
        source: DetectionDataset,
        gigabytes: float,
        threads: int = 8,
        indices: Iterable[int] | None = None,
    ) -> None:
        self.source = source
        self.cached: dict[int, DetectionSample] = {}
        free = gigabytes * 1e9
        needed = range(len(source)) if indices is None else [int(index) for index in indices]
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(needed), CHUNK):
                chunk = needed[first : first + CHUNK]
                for index, sample in zip(chunk, pool.map(self.try_to_read, chunk), strict=True):
                    if sample is None:
                        continue
                    # Pillow keeps 4 bytes for a pixel of red, green and blue.
                    free -= 4 * sample.image.width * sample.image.height
                    if free < 0:
                        return
                    self.cached[index] = sample

    def try_to_read(self, index: int) -> DetectionSample | None:
        try:
            return self.source[index]
        except ValueError:
            return None

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> DetectionSample:
        found = self.cached.get(index)
        return self.source[index] if found is None else found
