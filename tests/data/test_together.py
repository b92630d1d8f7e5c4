"""Streams that show two pictures of a class together, and batches whose size depends on the images shown."""

import itertools
import multiprocessing
from collections import defaultdict

import pytest
import torch
from shards_for_tests import copy_dataset, rewrite_shard, write_dataset

from imago.trainer.data.shards import ShardError, open_dataset
from imago.trainer.data.stream import stream

SIZES = (12, 7, 11)   # all classes in each shard
STEPS = 8             # of 16 images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('together') / 'packed', SIZES, classes=3)


def take(folder, steps=STEPS, **changes):
    settings = dict(batch=16, lanes=4, seed=1, rank=0, world=1, nimg=0, resolution=(8, 8), flip=True, workers=0, together=2)
    batches = stream(open_dataset(folder), **(settings | changes))
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def twos_of(batch):
    return list(zip(batch.keys[::2], batch.keys[1::2], strict=True))


def together(ranks):
    """The global batches that the ranks hold parts of."""
    return [([key for part in parts for key in part.keys], torch.cat([part.pictures['image'] for part in parts]).tolist(),
             torch.cat([part.labels for part in parts]).tolist(), parts[0].nimg) for parts in zip(*ranks, strict=True)]


def test_rows_2i_and_2i_plus_1_are_two_pictures_of_a_class(folder):
    partners = defaultdict(set)
    for batch in take(folder, steps=30):
        for (first, second), labels in zip(twos_of(batch), batch.labels.unflatten(0, (-1, 2)).tolist(), strict=True):
            assert labels == [int(first) % 3] * 2 == [int(second) % 3] * 2 and first != second
            partners[first].add(second)
        assert batch.damaged == []
    assert len(partners) == 30, 'each picture comes first some time'
    assert sum(len(seconds) > 1 for seconds in partners.values()) > 15, 'and not ever with the same one'


def test_the_first_ones_are_those_of_single_pictures(folder):
    for twos, singles in zip(take(folder), take(folder, together=1), strict=True):
        assert twos.keys[::2] == singles.keys[::2] and twos.keys != singles.keys
        assert torch.equal(twos.pictures['image'][::2], singles.pictures['image'][::2])


@pytest.mark.parametrize('world, workers', [(2, 0), (4, 0), (1, 1)])
def test_world_and_workers_do_not_change_who_is_together(folder, world, workers):
    ranks = [take(folder, rank=rank, world=world, workers=workers) for rank in range(world)]
    assert together(ranks) == together([take(folder)])


def test_streams_of_two_together_resume(folder):
    assert together([take(folder, STEPS - 3, nimg=48)]) == together([take(folder)])[3:]


def spoil(folder, number, names):
    """Overwrite the pictures of a shard with zeros, and leave the headers whole."""
    content = bytearray((folder / f'shard-{number:05d}.tar').read_bytes())
    for name in names:
        header = content.index(f'{name}.png'.encode())
        size = int(content[header + 124:header + 135], 8)
        content[header + 512:header + 512 + size] = bytes(size)
    rewrite_shard(folder, number, bytes(content))


def test_a_damaged_partner_is_passed_over_and_named(folder, tmp_path):
    copy, bad = copy_dataset(folder, tmp_path / 'damaged'), '000000014'
    spoil(copy, 1, [bad])
    batches, whole = take(copy, 30), take(folder, 30)
    due = [pair for batch in whole for pair in twos_of(batch)]
    damaged = [line for batch in batches for line in batch.damaged]
    assert any(second == bad for _, second in due)
    assert len(damaged) == sum(pair.count(bad) for pair in due)
    assert all(line.startswith(f'shard-00001.tar/{bad}.png: ') for line in damaged)
    for (first, second), pair in zip((pair for batch in batches for pair in twos_of(batch)), due, strict=True):
        assert bad not in (first, second) and first != second and int(first) % 3 == int(second) % 3
        assert bad in pair or (first, second) == pair
        assert pair[0] == bad or first == pair[0]


def test_a_partner_is_sought_in_the_other_shards(tmp_path):
    """Sample 3 is the only one of its class in the second shard."""
    folder = write_dataset(tmp_path / 'spread', (3, 1, 2), classes=3)
    batches = take(folder, 12, lanes=2, batch=4)
    assert {second for batch in batches for first, second in twos_of(batch) if first == '000000003'} == {'000000000'}


def test_the_last_picture_of_a_class_is_an_error(tmp_path):
    folder = write_dataset(tmp_path / 'alone', (5, 2), classes=4)    # one picture of class 3
    for workers in (0, 1):
        with pytest.raises(ShardError, match=r'^no other good picture of the class of 000000003 \(3\) in any shard$'):
            take(folder, lanes=2, batch=4, workers=workers)
        assert multiprocessing.active_children() == []
    spoiled = copy_dataset(write_dataset(tmp_path / 'two', (6, 2), classes=4), tmp_path / 'spoiled')
    spoil(spoiled, 1, ['000000007'])
    with pytest.raises(ShardError, match='no other good picture of the class of 000000003'):
        take(spoiled, lanes=2, batch=4)


def grows(nimg):
    return 8 if nimg < 24 else 16 if nimg < 56 else 4


SHOWN = [0, 8, 16, 24, 40, 56, 60, 64]


@pytest.mark.parametrize('count', [1, 2])
def test_batches_change_at_the_right_image(folder, count):
    lanes = {'lanes': 2, 'together': count, 'batch': grows}
    straight = take(folder, len(SHOWN), **lanes)
    assert [batch.nimg for batch in straight] == SHOWN
    assert [len(batch.keys) for batch in straight] == [len(batch.pictures['image']) for batch in straight] == [8, 8, 8, 16, 16, 4, 4, 4]
    assert together([take(folder, len(SHOWN), rank=rank, world=2, **lanes) for rank in (0, 1)]) == together([straight])
    for start in range(1, len(SHOWN)):
        resumed = take(folder, len(SHOWN) - start, nimg=SHOWN[start], **lanes)
        assert together([resumed]) == together([straight])[start:]


def test_changing_batches_show_what_one_size_shows(folder):
    changing = [key for batch in take(folder, len(SHOWN), lanes=2, batch=grows, together=1) for key in batch.keys]
    even = [key for batch in take(folder, 17, lanes=2, batch=4, together=1) for key in batch.keys]
    assert sorted(changing) == sorted(even)


def test_a_worker_follows_the_batches(folder):
    assert together([take(folder, 6, lanes=2, batch=grows, workers=1)]) == together([take(folder, 6, lanes=2, batch=grows)])
