"""The detectors by the name of their head: building one, and finding text with it.

To add a detector, write a subclass of `transfer.pyramid.PyramidDetector` in a file of its own and
list it in `HEADS`. Its name is then a choice of `python -m transfer.detect train --head`.
"""

import numpy as np
import torch
from PIL import Image

import vlpt
from transfer.dbnet import DBNet
from transfer.psenet import PSENet
from transfer.pyramid import BACKBONES, PADDING_COLOR, DetectorConfig, PyramidDetector

HEADS: dict[str, type[PyramidDetector]] = {"psenet": PSENet, "db": DBNet}


def build_detector(config: DetectorConfig, weights: str | None = None) -> PyramidDetector:
    """Build a detector.

    Args:
        config: its head and sizes.
        weights: a file that vlpt.load_backbone reads. Without one the backbone is random.
    Raises: ValueError or OSError if the file does not hold the backbone that `config` names.
    """
    name = "clip_resnet" if config.backbone == "tiny" else config.backbone
    size = BACKBONES[config.backbone]
    if weights is None:
        backbone = vlpt.build_backbone(name, **size)
    else:
        checkpoint = vlpt.read_checkpoint(weights)
        try:
            backbone = vlpt.load_backbone(checkpoint, name, **size)
        except ValueError as error:
            message = f"expected the weights of the backbone {config.backbone} of this version"
            advice = "set --backbone to that of the pre-training"
            reason = str(error).removeprefix("source: ")
            raise ValueError(f"{weights}: {message}, got others ({reason}); {advice}") from None
    return HEADS[config.head](backbone, config.width)


@torch.no_grad()
def detect_text(
    model: PyramidDetector, image: Image.Image, config: DetectorConfig
) -> tuple[list[np.ndarray], list[float]]:
    """Find the text in a picture of any size.

    Returns: (P, 2) polygons in the picture's own pixels; the mean score of each, 0..1.
    """
    device = next(model.parameters()).device
    scale = config.long_side / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    canvas = Image.new("RGB", (-width // 32 * -32, -height // 32 * -32), PADDING_COLOR)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].to(device)
    images = vlpt.normalize(pixels).contiguous(memory_format=torch.channels_last)
    scores = model(images)[0, :, :height, :width].sigmoid().cpu().numpy()  # (n, height, width)
    polygons, means = model.find_words(scores, config)
    # The inverse of drawing the truth, where a point of the picture is multiplied by the scale.
    stretch = np.divide(image.size, (width, height))
    return [(p * stretch).clip(0, image.size) for p in polygons], means
