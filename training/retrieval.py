"""Retrieval among held-out images: which text is nearest to each image, and the other way round."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

import vlpt
from training.distributed import all_gather_lists

Words = tuple[tuple[int, ...], ...]  # of one image, as ids


class Retrieval:
    """Collects the features of held-out batches and compares all images with all texts."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, Tensor, list[Words]]] = []

    def add(self, position: int, image: Tensor, text: Tensor, words: list[Words]) -> None:
        """Take a batch.

        Args:
            position: its number among the batches of all processes.
            image: (B, D), the image features.
            text: (B, D), the text features of the masked words.
            words: of each image, as `unmasked_words` returns them.
        """
        self.batches.append((position, image.float().cpu(), text.float().cpu(), words))

    def result(self) -> dict[str, float]:
        """The shares, 0..1, of the images that all processes have added. Every process calls it.

        Returns:
            `i2t` and `t2i`, the images whose own text is the nearest one, and the texts whose own
            image is; `same_words`, the images with the same words as another one of their batch,
            which `vlpt.contrastive_loss` takes for a mismatch; and `ceiling`, the retrieval that is
            possible if images with the same words cannot be told apart.
        """
        batches = sorted(all_gather_lists(self.batches), key=lambda batch: batch[0])
        image = F.normalize(torch.cat([image for _, image, _, _ in batches]), dim=1)
        text = F.normalize(torch.cat([text for _, _, text, _ in batches]), dim=1)
        similarity = image @ text.T
        own = torch.arange(len(image))
        counts = [Counter(words) for *_, words in batches]
        num_shared = sum(count for batch in counts for count in batch.values() if count > 1)
        return {
            "i2t": (similarity.argmax(dim=1) == own).float().mean().item(),
            "t2i": (similarity.argmax(dim=0) == own).float().mean().item(),
            "ceiling": len(set().union(*counts)) / len(image),
            "same_words": num_shared / len(image),
        }


def unmasked_words(ids: Tensor, targets: Tensor) -> list[Words]:
    """The words of each image of a batch, unmasked and sorted, to compare them.

    Pads and empty slots are left out, because batches are trimmed to different sizes.
    """
    unmasked = torch.where(targets == vlpt.IGNORE_INDEX, ids, targets)
    return [
        tuple(sorted(tuple(filter(None, word)) for word in zip(*image, strict=True) if any(word)))
        for image in unmasked.tolist()
    ]
