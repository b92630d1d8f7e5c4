"""Which picture sizes the networks can make. Torch-free, as the configuration is checked with it."""

from math import gcd

SHORTEST_SIDE = 4     # px, of the coarsest feature map
LONGEST_SIDE = 16383  # px, of a picture that WebP can hold


def parse_resolution(text: str) -> tuple[int, int]:
    """`512` or `768x512` -> (height, width) in px. ValueError if it is no size."""
    sides = text.split('x')
    if not 1 <= len(sides) <= 2 or not all(side.isascii() and side.isdigit() and len(side) <= 5 for side in sides):
        raise ValueError(f'resolution {text} is not a size; write e.g. 512, or 768x512 (height x width)')
    return int(sides[0]), int(sides[-1])


def base_and_doublings(resolution: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(height, width) in px -> (base height, base width) and k, with resolution = base * 2**k.

    k is the largest that leaves the base's shorter side at least 4 px, so that side is 4 to 7 px.
    ValueError where a side is shorter than 4 px or longer than 16383 px, or no multiple of 2**k.
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
    """Whether networks can make it."""
    step = _step(min(resolution))
    return SHORTEST_SIDE <= min(resolution) <= max(resolution) <= LONGEST_SIDE and not any(side % step for side in resolution)


def nearest_sizes(resolution: tuple[int, int]) -> list[tuple[int, int]]:
    """One or two sizes that networks can make: the sides rounded down, and up."""
    height, width = (min(max(side, SHORTEST_SIDE), LONGEST_SIDE) for side in resolution)
    step = _step(min(height, width))
    # rounding the shorter side up may bring it to the next k
    next_step = _step(_round_up(min(height, width), step))
    sizes = (height // step * step, width // step * step), (_round_up(height, next_step), _round_up(width, next_step))
    return [size for size in dict.fromkeys(sizes) if is_size(size)]


def largest_of_aspect(resolution: tuple[int, int], longest: int) -> tuple[int, int] | None:
    """The largest size that networks can make with this aspect, no larger than it, and no side longer than `longest` px."""
    common = gcd(*resolution)
    sizes = (tuple(side // common * part for side in resolution) for part in range(common, 0, -1))
    return next((size for size in sizes if max(size) <= longest and is_size(size)), None)


def largest_square(side: int) -> int:
    """The largest power of two up to `side`, within what networks can make."""
    return 1 << min(max(side, SHORTEST_SIDE), LONGEST_SIDE).bit_length() - 1


def _step(shorter: int) -> int:
    """2**k"""
    return 1 << max(shorter // SHORTEST_SIDE, 1).bit_length() - 1


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
