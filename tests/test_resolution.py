"""Which sizes the networks can make."""

import re

import pytest

from trainer.resolution import base_and_doublings


@pytest.mark.parametrize('resolution, expected', [
    ((4, 4), ((4, 4), 0)), ((5, 7), ((5, 7), 0)), ((32, 32), ((4, 4), 3)), ((48, 32), ((6, 4), 3)),
    ((512, 768), ((4, 6), 7)), ((96, 1024), ((6, 64), 4)), ((1024, 1024), ((4, 4), 8))])
def test_base_and_doublings(resolution, expected):
    assert base_and_doublings(resolution) == expected


def test_refused_sizes_come_with_sizes_that_work():
    refused = 0
    for height in range(1, 80):
        for width in range(1, 80):
            try:
                (base_height, base_width), doublings = base_and_doublings((height, width))
                assert (base_height << doublings, base_width << doublings) == (height, width)
                assert 4 <= min(base_height, base_width) <= 7
            except ValueError as error:
                refused += 1
                assert f'resolution {height}x{width} ' in str(error)
                for nearest in re.findall(r'(\d+)x(\d+)', str(error).split('nearest:')[1]):
                    base_and_doublings((int(nearest[0]), int(nearest[1])))
    assert refused
