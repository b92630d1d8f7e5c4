"""Phones write HEIC and HEIF. pillow-heif reads them, an extra that is imported only when such a picture is met."""

import importlib.util
from functools import cache
from typing import BinaryIO

FORMAT, SUFFIXES = 'HEIF', ('.heic', '.heif', '.hif')
BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx'}
HOW = 'pip install pillow-heif'
MOST_BYTES = 1 << 12    # of the first box, which lists brands of 4 bytes


@cache
def is_installed() -> bool:
    return importlib.util.find_spec('pillow_heif') is not None


def is_heif(file: BinaryIO) -> bool:
    """Tell whether a file begins as such pictures do. Its name may lie: some phones and programs write .jpg."""
    head = file.read(MOST_BYTES)
    file.seek(0)
    end = min(int.from_bytes(head[:4]), len(head))
    return head[4:8] == b'ftyp' and any(head[place:place + 4] in BRANDS for place in (8, *range(16, end, 4)))


@cache
def register() -> None:
    """Teach Pillow to read them; they come upright then. ValueError where pillow-heif is not installed."""
    if not is_installed():
        raise ValueError(f'a HEIF picture, which needs an extra: {HOW}')
    import pillow_heif
    pillow_heif.register_heif_opener()
