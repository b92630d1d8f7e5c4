"""A grid shows many pictures in one, row by row: small ones enlarged, with the names of their classes below them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WANTED = 128          # px of a picture's longer side, to which small ones are enlarged as far as whole factors go
STRIP, LETTERS = 15, 11   # px: height of the strip with a caption, and of its letters


def grid(pictures: np.ndarray, columns: int, captions: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Join pictures [NHWC] uint8 into one, row by row. Missing places stay black.

    captions: [N] texts, or none. scale: each pixel becomes so many in both directions; None: what small pictures need.
    """
    count, height, width, channels = pictures.shape
    scale = scale or max(1, WANTED // max(height, width))
    strip = STRIP if captions else 0
    rows = -(-count // columns)
    height, width = height * scale, width * scale
    sheet = np.zeros((rows * columns, height + strip, width, channels), np.uint8)
    sheet[:count, :height] = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    sheet = sheet.reshape(rows, columns, height + strip, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + strip), columns * width, channels)
    image = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    if captions:
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTERS)
        for number, text in enumerate(captions):
            row, column = divmod(number, columns)
            left, top = column * width, row * (height + strip) + height
            text = fitting(text, width - 4, font)
            draw.text((left + width / 2, top + strip / 2), text, fill='white', font=font, anchor='mm')
    return image


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return `text`, or its beginning and an ellipsis, no wider than `width` px; '' if nothing fits."""
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        if font.getlength(cut := f'{text[:length].rstrip()}…') <= width:
            return cut
    return ''
