"""What a run may start from instead of random weights."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torchvision

import vlpt
from training.weights import load_model


def load_init(model: vlpt.VLPT, init: str) -> str:
    """Load a whole model if it is of the same kind; else its backbone, and its pool if that fits.

    Args:
        init: a file that `vlpt.load_backbone` can read, or "torchvision" for ImageNet weights.
            A checkpoint of `train_min.py` has the whole model.
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
                f"--init torchvision: expected --backbone to be one of {expected}, "
                f"got {config.backbone}"
            )
        try:
            resnet = torchvision.models.get_model(config.backbone, weights="DEFAULT")
        except (OSError, RuntimeError) as error:  # no network, or a download that was cut short
            raise ValueError(
                f"--init torchvision: expected to download weights, got {error}"
            ) from None
        source = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    elif load_whole_model(model, Path(init)):
        return "the whole model"
    model.backbone = vlpt.load_backbone(source, config.backbone, **config.backbone_size)
    pool = vlpt.read_tensors(source, "visual.attnpool.", "pool.")
    shapes = {key: value.shape for key, value in model.pool.state_dict().items()}
    if {key: getattr(value, "shape", None) for key, value in pool.items()} != shapes:
        reason = "its pool has other sizes" if pool else "the file has no pool"
        return f"the backbone only, because {reason}"
    model.pool.load_state_dict(pool)
    return "the backbone and the pool"


@torch.no_grad()
def load_whole_model(model: vlpt.VLPT, path: Path) -> bool:
    """Load a checkpoint if its configuration is the model's, up to the image size.

    The positions of image tokens are interpolated to the size of the model's images.
    """
    saved = vlpt.read_checkpoint(path).get("config")
    size = {"image_size": model.config.image_size}
    if not isinstance(saved, dict) or saved | size != dataclasses.asdict(model.config):
        return False
    donor = load_model(path)
    state = donor.state_dict()
    pool, decoder = donor.pool, donor.decoder
    grid = (model.pool.side, model.pool.side)
    cells = vlpt.interpolate_pos_embed(pool.positional_embedding[1:], pool.side, grid)
    state["pool.positional_embedding"] = torch.cat([pool.positional_embedding[:1], cells])
    if isinstance(decoder, vlpt.VisualTextualDecoder):
        positions = vlpt.interpolate_pos_embed(decoder.positional_embedding, decoder.side, grid)
        state["decoder.positional_embedding"] = positions
    model.load_state_dict(state)
    return True
