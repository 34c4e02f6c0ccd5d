"""A contact sheet: the first pictures of a source with their quads and words."""

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_stub import Source, font_files, glyphs_of, load_font

WIDTH = 1536  # pixels
GAP = 6  # between pictures
CAPTION = 22  # height below a picture
CAPTION_SIZE = 15  # of its letters


def caption_font(caption: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that has all letters of a caption, if there is one; Pillow's own has only ASCII."""
    if not caption.isascii():
        for path in font_files():
            if glyphs_of(path, caption).issuperset(caption.replace(" ", "")):
                return load_font(path, CAPTION_SIZE)
    return ImageFont.load_default(CAPTION_SIZE)


def contact_sheet(source: Source, count: int, tile: int = 256) -> tuple[Image.Image, int]:
    """Draw the first pictures with their quads, a dot at each first corner, and words below.

    A picture that cannot be read is skipped, and a message says so.

    Args: tile: largest width of a picture on the sheet, where it is at most twice as high.
    Returns: the sheet, and how many pictures are on it.
    Raises: ValueError if there is none.
    """
    columns = WIDTH // tile
    tiles = []
    for k in range(min(count, len(source))):
        try:
            sample = source[k]
        except ValueError as error:
            print(f"warning: {error}; it is skipped", file=sys.stderr)
            continue
        image = Image.fromarray(sample.image)
        scale = min(tile / image.width, 2 * tile / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for quad in sample.quads if sample.quads is not None else ():
            draw.polygon((quad * scale).ravel().tolist(), outline=(255, 0, 80), width=1)
            x, y = (quad[0] * scale).tolist()
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 220, 0))
        tiles.append((image, "  ".join(sample.words).replace("\n", " ")[: tile // 9]))
    if not tiles:
        raise ValueError(f"{source.root}: expected readable pictures in this split, got none")
    rows = [tiles[k : k + columns] for k in range(0, len(tiles), columns)]
    heights = [max(image.height for image, _ in row) + CAPTION + GAP for row in rows]
    sheet = Image.new("RGB", (min(columns, len(tiles)) * (tile + GAP), sum(heights)), "white")
    for row, bottom in zip(rows, np.cumsum(heights).tolist(), strict=True):
        for k, (image, caption) in enumerate(row):
            left, top = k * (tile + GAP), bottom - CAPTION - GAP
            sheet.paste(image, (left, top - image.height))
            font = caption_font(caption)
            while font.getlength(caption) > tile:
                caption = caption[:-1]
            ImageDraw.Draw(sheet).text((left + 2, top + 2), caption, "black", font)
    return sheet, len(tiles)
