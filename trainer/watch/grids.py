"""A grid shows many pictures in one, row by row: small ones enlarged, with the names of their classes below them."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WANTED = 128          # px of a picture's longer side, to which small ones are enlarged as far as whole factors go
STRIP, LETTERS = 15, 11   # px: height of the strip with a caption, and of its letters
MOST_PIXELS = 1 << 29     # of a grid: 1.5 GB of memory, twice


def scale_of(height: int, width: int) -> int:
    """Return the whole factor by which a grid enlarges pictures of this size in px, if nobody asks for another."""
    return max(1, WANTED // max(height, width))


def check_size(count: int, columns: int, height: int, width: int, scale: int | None) -> None:
    """Raise ValueError if a grid of `count` pictures of this size in px is too large to be made."""
    factor = scale or scale_of(height, width)
    high, wide = -(-count // columns) * height * factor, columns * width * factor
    if high * wide > MOST_PIXELS:
        raise ValueError(f'a grid of {wide} x {high} px has more than {MOST_PIXELS} pixels; take fewer seeds'
                         + (f', or a smaller --scale than {factor}' if factor > 1 else ', or leave out --grid'))


def captions_of(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Return the name of each picture's class, as far as the font has its letters, else its number; [] without classes."""
    return [legible(class_names[label]) or f'class {label}' for label in labels] if class_names else []


def legible(name: str) -> str:
    """Return `name` without accents; '' if the font, which has ASCII alone, still lacks a letter of it."""
    plain = ''.join(letter for letter in unicodedata.normalize('NFKD', name) if not unicodedata.combining(letter))
    return plain if plain.isascii() and plain.isprintable() else ''


def grid(pictures: np.ndarray, columns: int, captions: Sequence[str] = (), scale: int | None = None) -> Image.Image:
    """Join pictures [NHWC] uint8 into one, row by row. Missing places stay black.

    captions: [N] texts in ASCII, or none. scale: each pixel becomes so many in both directions; None: what small pictures need.
    """
    count, height, width, channels = pictures.shape
    scale = scale or scale_of(height, width)
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
