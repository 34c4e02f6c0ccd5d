"""How photographs vary in training: cropped, turned and recoloured, never mirrored."""

import cmath
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_stub import luminance
from training.dataset import stretch

MAX_CUT = 0.15  # of each side
MAX_TURN = 5.0  # degrees
MAX_COLOUR = 0.3  # change of brightness, contrast and colour


def augment(
    pixels: Tensor, quads: np.ndarray | None, size: int, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray | None]:
    """Vary a picture and make it a square.

    Brightness, contrast and colour always change. Where there are quads, they are clipped to the
    picture, and up to 15 % is cut off each side, but nothing of a quad. The rest is turned by up to
    5 degrees, unless that would move a quad out of view.

    Args: pixels, (3, H, W) uint8; quads, (words, 4, 2) or None; size, of the square in pixels.
    Returns: (3, size, size) uint8, and the quads in it.
    Note (D11): the released code keeps 95 % to 100 % of the area, or less of a photograph wider
        than 4:3, even if this cuts words off, and changes nothing else.
    """
    angle = 0.0
    if quads is not None:
        pixels, quads = crop(pixels, quads, rng)
        height, width = pixels.shape[1:]
        quads = quads * size / (width, height)
        angle = rng.uniform(-MAX_TURN, MAX_TURN)
        turned = turn_quads(quads, angle, size)
        if turned.min() >= 0 and turned.max() <= size:
            quads = turned
        else:
            angle = 0.0
    square = stretch(pixels, size).float()
    mean = square.mean((1, 2), keepdim=True)
    square -= mean  # so that what is seen beyond the edges, zero, is the mean colour
    if angle:
        square = turn_pixels(square, angle)
    matrix, level = colour_change(rng, mean.flatten())
    # One product; torchvision's adjust_brightness, _contrast and _saturation take 5 times as long.
    changed = torch.addmm(level[:, None] + 0.5, matrix, square.flatten(1))  # uint8 rounds down
    return changed.clamp_(0, 255).to(torch.uint8).view(3, size, size), quads


def crop(pixels: Tensor, quads: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Clip quads to the picture, and cut off a random part of each side that has no quad in it."""
    height, width = pixels.shape[1:]
    whole = np.array([width, height])
    quads = quads.clip(0, whole)
    room = np.stack([quads.min((0, 1)), whole - quads.max((0, 1))])
    cut = rng.uniform(0, np.minimum(room, MAX_CUT * whole)).astype(int)
    (left, top), (right, bottom) = cut[0], whole - cut[1]
    return pixels[:, top:bottom, left:right], quads - cut[0]


def turn_pixels(square: Tensor, angle: float) -> Tensor:
    """Turn a square (3, S, S) counter-clockwise about its centre; what was beyond it becomes zero.

    torchvision's `rotate` gives the same pixels, but its grid takes more than half of the time.
    """
    size = square.shape[-1]
    axis = (2 * torch.arange(size) + 1) / size - 1  # centres of pixels; the edges are -1 and 1
    # As x + iy with y downwards, the point that a pixel comes from is turn * (x + iy).
    turn = cmath.exp(1j * math.radians(angle))
    origin = turn * axis + (turn * 1j * axis)[:, None]
    return F.grid_sample(square[None], torch.view_as_real(origin)[None], align_corners=False)[0]


def turn_quads(quads: np.ndarray, angle: float, size: int) -> np.ndarray:
    """Turn quads counter-clockwise about the centre of their picture, as `turn_pixels` does."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return (quads - size / 2) @ [[cos, -sin], [sin, cos]] + size / 2


def colour_change(rng: np.random.Generator, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Draw factors b, c, s for torchvision's adjust_brightness, _contrast, _saturation, in turn.

    Args: mean: the picture's mean colour (3,).
    Returns: M (3, 3) and v (3,), such that a colour x becomes M (x - mean) + v.
    """
    bright, contrast, saturation = rng.uniform(1 - MAX_COLOUR, 1 + MAX_COLOUR, 3).tolist()
    grey = torch.tensor([[0.299, 0.587, 0.114]])  # as `luminance`
    saturate = saturation * torch.eye(3) + (1 - saturation) * grey.expand(3, 3)
    centre = contrast * mean + (1 - contrast) * luminance(mean.tolist())
    return bright * contrast * saturate, saturate @ (bright * centre)
