"""Which sizes the networks can make."""

import random
import re

import pytest

from imago.trainer.config.resolution import base_and_doublings, is_size, largest_of_aspect, largest_square, nearest_sizes


@pytest.mark.parametrize('resolution, expected', [
    ((4, 4), ((4, 4), 0)), ((5, 7), ((5, 7), 0)), ((32, 32), ((4, 4), 3)), ((48, 32), ((6, 4), 3)),
    ((512, 768), ((4, 6), 7)), ((96, 1024), ((6, 64), 4)), ((1024, 1024), ((4, 4), 8)), ((14336, 14336), ((7, 7), 11))])
def test_base_and_doublings(resolution, expected):
    assert base_and_doublings(resolution) == expected


def sizes() -> list[tuple[int, int]]:
    rng = random.Random(0)
    return [*((height, width) for height in range(-1, 80) for width in range(-1, 80)), (16384, 16384), (99999, 1),
            *((rng.randrange(99999), rng.randrange(99999)) for _ in range(500)), (16383, 16383), (4, 16384), (9000, 16000)]


def test_refused_sizes_come_with_sizes_that_work():
    refused = 0
    for height, width in sizes():
        try:
            (base_height, base_width), doublings = base_and_doublings((height, width))
            assert (base_height << doublings, base_width << doublings) == (height, width) and is_size((height, width))
            assert 4 <= min(base_height, base_width) <= 7 and max(height, width) <= 16383
        except ValueError as error:
            refused += 1
            assert f'resolution {height}x{width} ' in str(error) and not is_size((height, width))
            nearest = re.findall(r'(\d+)x(\d+)', str(error).split('nearest:')[1])
            assert nearest
            for size in nearest:
                base_and_doublings((int(size[0]), int(size[1])))
    assert 500 < refused < len(sizes())


def test_nearest_sizes():
    assert nearest_sizes((500, 750)) == [(448, 704), (512, 768)] and nearest_sizes((1, 2)) == [(4, 4)]
    assert nearest_sizes((16384, 16384)) == nearest_sizes((16000, 16000)) == [(14336, 14336)]


def test_the_largest_size_of_an_aspect():
    """Pictures that are packed can be shown smaller, at their own aspect alone."""
    assert largest_of_aspect((500, 750), 1024) == (384, 576) and largest_of_aspect((2048, 1024), 1024) == (1024, 512)
    assert largest_of_aspect((256, 256), 1024) == (256, 256) and largest_of_aspect((499, 751), 1024) is None
    for height, width in sizes()[7000:]:
        size = largest_of_aspect((height, width), 1024)
        assert size is None or is_size(size) and size[0] * width == size[1] * height and size[0] <= height


def test_the_largest_square():
    assert [largest_square(side) for side in (0, 1, 4, 7, 8, 1000, 16384, 99999)] == [4, 4, 4, 4, 8, 512, 8192, 8192]
