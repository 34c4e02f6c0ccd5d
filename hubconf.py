"""Entry points for torch.hub: `torch.hub.load(CLONE, "backbone", path=FILE, source="local")`."""

import vlpt

dependencies = ["torch", "torchvision"]


def backbone(
    path: str, name: str = "clip_resnet50", **size: int | tuple[int, ...]
) -> vlpt.Backbone:
    """Load the backbone of an export or a checkpoint, see `vlpt.load_backbone`."""
    return vlpt.load_backbone(path, name, **size)
