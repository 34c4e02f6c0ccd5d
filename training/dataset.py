"""What the model is trained and evaluated on: pictures, and up to N words of each as ids.

`Pretraining` makes such items of a source of `data_stub` or of the folder `readers`, and `collate`
makes batches of items. `training.data` loads them in worker processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import vlpt
from data_stub import Source, is_learnable, shuffled

Item = tuple[Tensor, Tensor, int] | str  # what `Pretraining` returns
Augment = Callable[
    [Tensor, np.ndarray | None, int, np.random.Generator], tuple[Tensor, np.ndarray | None]
]  # (picture (3, H, W), quads of the drawn words, size, rng) -> picture (3, size, size), quads


class Batch(NamedTuple):
    """Pictures and the words drawn for them, before masking."""

    images: Tensor  # (B, 3, size, size) uint8
    ids: Tensor  # (B, L, N) int64
    skipped: list[str]  # why pictures of this batch are missing
    outside: int = 0  # words of this batch that were left out, see `Sample`


class Pretraining(torch.utils.data.Dataset[Item]):
    """An endless run over a source: item k is picture k mod length of a shuffled epoch.

    Each epoch draws up to N words of every picture anew. Everything follows from (seed, k), so
    the number of workers changes nothing. Pictures without a learnable word are left out; `notes`
    counts them, and the words that were left out or cut.

    Args:
        source: one split of a data set.
        alphabet: turns words into ids, and decides which words can be learned.
        seed: decides the order, the subset and which words are drawn.
        size: height and width of the pictures in pixels; they are stretched to a square.
        subset: how many pictures to use, or None for all; a smaller subset is part of a larger.
        annotated: 0..1, the share of its learnable words that each picture keeps, at least one;
            a smaller share is part of a larger.
        augment: what changes each picture a little, such as `training.augment.augment`, or None.
    Raises: ValueError if the source has no usable picture or fewer than `subset`, or if
        `annotated` is out of range.
    """

    def __init__(
        self,
        source: Source,
        alphabet: vlpt.Alphabet,
        size: int,
        seed: int,
        subset: int | None = None,
        annotated: float = 1.0,
        augment: Augment | None = None,
    ) -> None:
        self.source = source
        self.alphabet = alphabet
        self.size = size
        self.seed = seed
        self.annotated = annotated
        self.augment = augment
        found, unlearned = source.learnable(alphabet)
        notes = source.notes + unlearned
        self.indices = np.flatnonzero(found).astype(np.int32)
        notes["pictures without a usable word"] += len(found) - len(self.indices)
        self.notes = +notes  # without zeros
        if not len(self.indices):
            raise ValueError(
                f"{source.root}: expected a word with a character of the alphabet, got none"
            )
        if subset is not None:
            if not 1 <= subset <= len(self.indices):
                raise ValueError(
                    f"subset: expected 1 to {len(self.indices)} pictures, got {subset}"
                )
            order = np.random.default_rng([seed, 0, 0, 1]).permutation(len(self.indices))
            self.indices = np.sort(self.indices[order[:subset]])
        if not 0 < annotated <= 1:
            raise ValueError(f"annotated: expected above 0 and at most 1, got {annotated}")

    def index(self, k: int) -> int:
        """The number in the source of the picture of item k."""
        epoch, position = divmod(k, len(self.indices))
        return int(self.indices[shuffled(len(self.indices), self.seed, epoch)[position]])

    def __getitem__(self, k: int) -> Item:
        """Picture (3, size, size) uint8, ids (L, N), words outside; or why it cannot be read."""
        index = self.index(k)
        try:
            sample = self.source.read(index, self.size)
        except ValueError as error:
            return str(error)
        known = [j for j, word in enumerate(sample.words) if is_learnable(word, self.alphabet)]
        if not known:
            return f"{self.source.name(index)}: expected a usable word inside the picture, got none"
        if self.annotated < 1:
            order = np.random.default_rng([self.seed, index, 0, 2]).permutation(len(known))
            kept = max(1, round(self.annotated * len(known)))
            known = [known[j] for j in order[:kept]]
        order = np.random.default_rng([self.seed, k]).permutation(len(known))
        drawn = [known[j] for j in order[: vlpt.MAX_WORDS]]
        pixels = torch.from_numpy(sample.image).permute(2, 0, 1)
        if self.augment:
            quads = None if sample.quads is None else sample.quads[drawn]
            rng = np.random.default_rng([self.seed, k, 3])
            pixels, _ = self.augment(pixels, quads, self.size, rng)
        else:
            pixels = stretch(pixels, self.size)
        return pixels, self.alphabet.encode([sample.words[j] for j in drawn]), sample.outside


def stretch(pixels: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 as a square (3, size, size), with antialiasing."""
    square = F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)
    return square[0].contiguous()


def collate(items: list[Item]) -> Batch:
    """Stack the items that could be read, perhaps none; `skipped` has the reasons of the others."""
    skipped = [item for item in items if isinstance(item, str)]
    good = [item for item in items if not isinstance(item, str)]
    if not good:
        no_ids = torch.empty(0, vlpt.MAX_CHARS, vlpt.MAX_WORDS, dtype=torch.long)
        return Batch(torch.empty(0, 3, 0, 0, dtype=torch.uint8), no_ids, skipped)
    images, ids, outside = zip(*good, strict=True)
    return Batch(torch.stack(images), torch.stack(ids), skipped, sum(outside))


def trim(ids: Tensor) -> Tensor:
    """Cut ids (B, L, N) to the longest word and to the most words of the batch.

    This is for speed only: what is cut off is pads, which the model never looks at, so that its
    features and losses stay the same. Call it on the CPU, since a GPU would have to wait for the
    two sizes.

    Returns: a view (B, l, n) with 1 <= l <= L and 1 <= n <= N.
    """
    used = ids != vlpt.PAD
    if not used.any():
        return ids[:, :1, :1]
    _, chars, words = (used.nonzero().amax(0) + 1).tolist()
    return ids[:, :chars, :words]
