"""This module gives pictures that lie in a file as bare values the form of any other picture."""

import io
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from imago.trainer.pack.members import Member

MOST_BYTES = 1 << 30    # of a collection, which is kept in memory; CIFAR has 184e6


@dataclass(frozen=True, slots=True, eq=False)
class ArrayMember(Member):
    """A picture whose values were read from the file `container`."""

    pixels: np.ndarray   # [HW] grey or [HWC] colour, uint8

    def open(self, max_bytes: int) -> BinaryIO:
        height, width = self.pixels.shape[:2]
        if self.pixels.nbytes > max_bytes:
            raise ValueError(f'{self.pixels.nbytes} bytes, more than {max_bytes}')
        kind = b'P5' if self.pixels.ndim == 2 else b'P6'   # PGM, PPM
        return io.BytesIO(b'%s %d %d 255\n' % (kind, width, height) + self.pixels.tobytes())
