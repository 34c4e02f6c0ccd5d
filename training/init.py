"""What a run may start from instead of random weights."""

from typing import Any

import torchvision

import vlpt


def load_init(model: vlpt.VLPT, init: str) -> str:
    """Load the backbone of a model, and its pool where that fits.

    Args:
        init: a file that `vlpt.load_backbone` can read, or "torchvision" for ImageNet weights.
    Returns:
        What was loaded, in words.
    Raises:
        ValueError: the weights are not of this backbone, or cannot be fetched.
        OSError: the file cannot be read.
    """
    config = model.config
    source: Any = init
    if init == "torchvision":
        if config.backbone not in vlpt.TORCHVISION_BACKBONES:
            expected = ", ".join(vlpt.TORCHVISION_BACKBONES)
            raise ValueError(
                f"--init torchvision: expected --backbone {expected}, got {config.backbone}"
            )
        try:
            resnet = torchvision.models.get_model(config.backbone, weights="DEFAULT")
        except (OSError, RuntimeError) as error:  # no network, or a download that was cut short
            raise ValueError(f"--init torchvision: cannot fetch its weights: {error}") from None
        source = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    model.backbone = vlpt.load_backbone(source, config.backbone, **config.backbone_size)
    pool = vlpt.read_tensors(source, "visual.attnpool.", "pool.")
    shapes = {key: value.shape for key, value in model.pool.state_dict().items()}
    if {key: getattr(value, "shape", None) for key, value in pool.items()} != shapes:
        return "backbone only, because its pool has other sizes" if pool else "backbone only"
    model.pool.load_state_dict(pool)
    return "backbone and pool"
