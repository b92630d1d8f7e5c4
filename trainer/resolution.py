"""Which picture sizes the networks can make. Torch-free, as the configuration is checked with it."""

SHORTEST_SIDE = 4  # px, of the coarsest feature map


def parse_resolution(text: str) -> tuple[int, int]:
    """`512` or `768x512` -> (height, width) in px. ValueError if it is no size."""
    sides = text.split('x')
    if not 1 <= len(sides) <= 2 or not all(side.isascii() and side.isdigit() and len(side) <= 5 for side in sides):
        raise ValueError(f'resolution {text} is not a size; write e.g. 512, or 768x512 (height x width)')
    return int(sides[0]), int(sides[-1])


def base_and_doublings(resolution: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(height, width) in px -> (base height, base width) and k, with resolution = base * 2**k.

    k is the largest that leaves the base's shorter side at least 4 px, so that side is 4 to 7 px.
    ValueError where a side is shorter than 4 px or no multiple of 2**k.
    """
    height, width = resolution
    if min(height, width) < SHORTEST_SIDE:
        raise ValueError(f'resolution {height}x{width} (height x width) is too small: both sides must be at least '
                         f'{SHORTEST_SIDE} px; nearest: {max(height, SHORTEST_SIDE)}x{max(width, SHORTEST_SIDE)}')
    doublings = _doublings(min(height, width))
    step = 2 ** doublings
    if height % step or width % step:
        # rounding the shorter side up may bring it to the next k
        next_step = 2 ** _doublings(_round_up(min(height, width), step))
        raise ValueError(f'resolution {height}x{width} (height x width): both sides must be multiples of {step}, that '
                         f'is 2^floor(log2(shorter side / {SHORTEST_SIDE})); nearest: '
                         f'{height // step * step}x{width // step * step} or '
                         f'{_round_up(height, next_step)}x{_round_up(width, next_step)}')
    return (height // step, width // step), doublings


def _doublings(shorter: int) -> int:
    return (shorter // SHORTEST_SIDE).bit_length() - 1


def _round_up(side: int, step: int) -> int:
    return -(-side // step) * step
