"""A contact sheet: the first pictures of a source with their quads and words."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_stub import Source

WIDTH = 1536  # pixels
GAP = 6  # between pictures
CAPTION = 22  # height below a picture


def contact_sheet(source: Source, count: int, tile: int = 256) -> Image.Image:
    """Draw the first pictures with their quads, a dot at each first corner, and words below.

    Args: tile: width of a picture on the sheet.
    """
    count = min(count, len(source))
    columns = WIDTH // tile
    tiles = []
    for k in range(count):
        sample = source[k]
        image = Image.fromarray(sample.image)
        scale = tile / image.width
        image = image.resize((tile, round(image.height * scale)), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for quad in sample.quads if sample.quads is not None else ():
            draw.polygon((quad * scale).ravel().tolist(), outline=(255, 0, 80), width=1)
            x, y = (quad[0] * scale).tolist()
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 220, 0))
        tiles.append((image, "  ".join(sample.words)[: tile // 9]))
    if not tiles:
        raise ValueError(f"{source.root}: expected pictures in this split, got none")
    rows = [tiles[k : k + columns] for k in range(0, count, columns)]
    heights = [max(image.height for image, _ in row) + CAPTION + GAP for row in rows]
    sheet = Image.new("RGB", (min(columns, count) * (tile + GAP), sum(heights)), "white")
    font = ImageFont.load_default(15)
    for row, bottom in zip(rows, np.cumsum(heights).tolist(), strict=True):
        for k, (image, caption) in enumerate(row):
            left, top = k * (tile + GAP), bottom - CAPTION - GAP
            sheet.paste(image, (left, top - image.height))
            ImageDraw.Draw(sheet).text((left + 2, top + 2), caption, "black", font)
    return sheet
