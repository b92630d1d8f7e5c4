"""A grid shows many pictures in one, row by row."""

import numpy as np
from PIL import Image


def grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """Join pictures [NHWC] uint8 into one, row by row. Missing places stay black."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, channels).squeeze())
