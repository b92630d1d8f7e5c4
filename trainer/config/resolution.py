"""This module knows which picture sizes the networks can make. It needs no torch, as the configuration is checked with it."""

from math import gcd

SHORTEST_SIDE = 4     # px, of the coarsest feature map
LONGEST_SIDE = 16383  # px, the most that WebP can hold


def parse_resolution(text: str) -> tuple[int, int]:
    """Turn `512` or `768x512` into (height, width) in px. Raises ValueError if the text is no size."""
    sides = text.split('x')
    if not 1 <= len(sides) <= 2 or not all(side.isascii() and side.isdigit() and len(side) <= 5 for side in sides):
        raise ValueError(f'resolution {text} is not a size; write e.g. 512, or 768x512 (height x width)')
    return int(sides[0]), int(sides[-1])


def base_and_doublings(resolution: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Split (height, width) in px into (base height, base width) and k, with resolution = base * 2**k.

    k is the largest number that leaves the base's shorter side at least 4 px, so this side is 4 to 7 px.
    Raises ValueError if a side is shorter than 4 px, longer than 16383 px, or not a multiple of 2**k.
    """
    height, width = resolution
    step = _step(min(resolution))
    if not is_size(resolution):
        rule = f'both sides must be multiples of {step}, that is 2^floor(log2(shorter side / {SHORTEST_SIDE}))'
        if not SHORTEST_SIDE <= min(resolution) <= max(resolution) <= LONGEST_SIDE:
            rule = f'both sides must be {SHORTEST_SIDE} to {LONGEST_SIDE} px'
        nearest = ' or '.join(f'{height}x{width}' for height, width in nearest_sizes(resolution))
        raise ValueError(f'resolution {height}x{width} (height x width): {rule}; nearest: {nearest}; '
                         'imago pack --resolution SIZE brings pictures to one')
    return (height // step, width // step), step.bit_length() - 1


def is_size(resolution: tuple[int, int]) -> bool:
    """Return whether networks can make this (height, width) in px."""
    step = _step(min(resolution))
    return SHORTEST_SIDE <= min(resolution) <= max(resolution) <= LONGEST_SIDE and not any(side % step for side in resolution)


def nearest_sizes(resolution: tuple[int, int]) -> list[tuple[int, int]]:
    """Return one or two sizes (height, width) that networks can make: the sides rounded down, and rounded up."""
    height, width = (min(max(side, SHORTEST_SIDE), LONGEST_SIDE) for side in resolution)
    step = _step(min(height, width))
    # rounding the shorter side up may bring it to the next k
    next_step = _step(_round_up(min(height, width), step))
    sizes = (height // step * step, width // step * step), (_round_up(height, next_step), _round_up(width, next_step))
    return [size for size in dict.fromkeys(sizes) if is_size(size)]


def largest_of_aspect(resolution: tuple[int, int], longest: int) -> tuple[int, int] | None:
    """Return the largest size that networks can make with this aspect ratio, or None if there is none.

    It is not larger than `resolution`, (height, width) in px, and no side is longer than `longest` px.
    """
    (height, width), common = resolution, gcd(*resolution)
    sizes = ((height // common * part, width // common * part) for part in range(common, 0, -1))
    return next((size for size in sizes if max(size) <= longest and is_size(size)), None)


def largest_square(side: int) -> int:
    """Return the largest power of two up to `side` px, kept within the sides that networks can make."""
    return 1 << min(max(side, SHORTEST_SIDE), LONGEST_SIDE).bit_length() - 1


def _step(shorter: int) -> int:
    """Return 2**k, which must divide both sides, for a shorter side in px."""
    return 1 << max(shorter // SHORTEST_SIDE, 1).bit_length() - 1


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
