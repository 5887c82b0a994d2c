"""Contact sheets: many small images on one quiet page, each with its caption.

Used by the report and by the generator's validation. A sheet shows pixels as they are: no window, no contrast stretch,
no resampling (images are enlarged only by whole factors, nearest neighbour). It promises nothing about diagnosis.
"""

import base64
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 8
"""Pixels between cells and around the sheet; chosen because captions need air."""
FONT_PX = 12
"""Caption size in pixels; the smallest that reads well in a browser without zoom."""
PAPER, INK = 250, 60
"""Grey levels of the sheet and of the captions: a contrast of about 10:1."""
SMALLEST_CELL = 128
"""Smaller images are enlarged by a whole factor to at least this many pixels, so that captions fit below them."""


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Image.Image:
    """Lay images out row by row with their captions below.

    Args:
        images: n arrays of one shape, (height, width) or (height, width, 1), uint8 in [0, 255], n >= 1.
        captions: n texts; wrapped to the cell's width, at most three lines, the rest replaced by an ellipsis.
        columns: images per row, >= 1.

    Returns:
        An 8-bit grey image (mode "L"); its size depends only on the shapes, the number of images and the captions.

    Raises:
        ValueError: no images, other shapes or dtypes, a caption missing, or ``columns`` below 1.
    """
    cells = [_cell(image) for image in images]
    if not cells or len(cells) != len(captions) or columns < 1 or len({cell.shape for cell in cells}) != 1:
        raise ValueError(f"contact_sheet: {len(cells)} images of shapes {sorted({c.shape for c in cells})}, "
                         f"{len(captions)} captions, {columns} columns; wanted: n >= 1 of one shape, n captions, >= 1")
    height, width = cells[0].shape
    font = ImageFont.load_default(FONT_PX)
    wrapped = [_wrap(caption, font=font, width=width) for caption in captions]
    text_height = (FONT_PX + 4) * max(len(lines) for lines in wrapped)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    step_x, step_y = width + GAP, height + text_height + 2 * GAP
    sheet = Image.new("L", (columns * step_x + GAP, rows * step_y + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (cell, lines) in enumerate(zip(cells, wrapped, strict=True)):
        x, y = GAP + (i % columns) * step_x, GAP + (i // columns) * step_y
        sheet.paste(Image.fromarray(cell), (x, y))
        for k, line in enumerate(lines):
            draw.text((x, y + height + 4 + k * (FONT_PX + 4)), line, fill=INK, font=font)
    return sheet


def data_uri(image: np.ndarray | Image.Image) -> str:
    """A PNG ``data:`` URI of an image, (height, width) uint8 or a PIL image; equal pixels give equal text."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _cell(image: np.ndarray) -> np.ndarray:
    """One image as (height, width) uint8, enlarged by a whole factor when it is small."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"contact_sheet: an image is {image.shape} {image.dtype}; wanted: (height, width) uint8")
    factor = max(1, -(-SMALLEST_CELL // min(image.shape)))
    return np.kron(image, np.ones((factor, factor), dtype=np.uint8)) if factor > 1 else np.ascontiguousarray(image)


def _wrap(caption: str, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A caption as at most three lines no wider than ``width`` pixels."""
    per_line = max(4, int(width / (font.getlength("abcdefghij klmnop") / 17)))
    return textwrap.wrap(caption, per_line, max_lines=3, placeholder=" …") or [""]
