"""Gradient checkpointing of the backbone: less memory for about a third more computation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

import vlpt


def recompute(backbone: vlpt.Backbone) -> None:
    """Let a backbone keep only what enters its stem and its stages between forward and backward.

    Backward runs each of them again, one at a time. Names, results, gradients and running
    statistics stay the same.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(backbone)  # for the first and the second run

    def run(stage: Callable[[Tensor], Tensor], x: Tensor) -> Any:
        return checkpoint(stage, x, use_reentrant=False, context_fn=contexts)

    def forward(images: Tensor) -> list[Tensor]:
        x = run(backbone.stem, images)
        feature_maps = []
        for stage in backbone.stages:
            x = run(stage, x)
            feature_maps.append(x)
        return feature_maps

    backbone.forward = forward  # type: ignore[method-assign]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norms leave their running statistics as they are, though they are in training."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the new statistics are multiplied by it
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long)  # SyncBatchNorm needs one
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches_tracked
