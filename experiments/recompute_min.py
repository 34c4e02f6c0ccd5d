"""Gradient checkpointing: a backbone that computes twice what it would have to keep."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import vlpt


class Recomputed(vlpt.Backbone):
    """The same children, names and results; between forward and backward it holds its input, the
    stem's output and each layer's. Backward runs each of these stages again, one at a time.

        model.backbone = Recomputed.of(model.backbone)
    """

    @classmethod
    def of(cls, backbone: vlpt.Backbone) -> "Recomputed":
        return cls(backbone.name, dict(backbone.items()), backbone.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = [child for name, child in self.items() if not name.startswith("layer")]
        maps = [x]
        for stage in (nn.Sequential(*stem), *list(self.values())[len(stem) :]):
            maps.append(run_twice(stage, maps[-1]))
        return maps[2:]


def run_twice(stage: nn.Module, x: Tensor) -> Tensor:
    """Both runs have copies of the running statistics; what the first made of them is kept."""
    copies = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    y = checkpoint(functional_call, stage, copies, x, use_reentrant=False)
    with torch.no_grad():
        for name, buffer in stage.named_buffers():
            buffer.copy_(copies[name])
    return y
