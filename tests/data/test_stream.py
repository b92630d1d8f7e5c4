import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shards_for_tests import copy_dataset, picture, rewrite_shard, write_dataset

from imago.trainer.data.manifest import Manifest
from imago.trainer.data.order import Order
from imago.trainer.data.shards import Dataset, SampleReader, ShardError, open_dataset
from imago.trainer.data.stream import Batch, stream
from imago.trainer.pack.shards import ShardWriter

SIZES = (7, 5, 8)
STEPS = 8  # of 8 images: more than 3 epochs of 20


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', SIZES, classes=3)


@pytest.fixture(scope='module')
def old_folder(tmp_path_factory) -> Path:
    """The same pictures, as they were packed before shards had checksums."""
    return write_dataset(tmp_path_factory.mktemp('data') / 'old', SIZES, classes=3, checksums=False)


def take(dataset: Dataset, steps: int = STEPS, **changes) -> list[Batch]:
    settings = dict(batch=8, lanes=4, seed=1, rank=0, world=1, nimg=0, resolution=dataset.manifest.resolution,
                    flip=True, workers=0)
    batches = stream(dataset, **(settings | changes))
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def together(ranks: list[list[Batch]]) -> list[tuple]:
    """The global batches that the ranks hold parts of."""
    return [([key for part in parts for key in part.keys], torch.cat([part.pictures['image'] for part in parts]).tolist(),
             torch.cat([part.labels for part in parts]).tolist(), parts[0].nimg) for parts in zip(*ranks)]


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize('world, workers', [(2, 0), (4, 0), (1, 1), (1, 3), (2, 1)])
def test_world_and_workers_do_not_change_the_batches(folder, world, workers):
    dataset = open_dataset(folder)
    expected = together([take(dataset)])
    assert together([take(dataset, rank=rank, world=world, workers=workers) for rank in range(world)]) == expected


def test_pictures_labels_and_flips_are_those_of_the_order(folder):
    dataset = open_dataset(folder)
    order, starts = Order(dataset.manifest, 4, 1), [shard.first for shard in dataset.manifest.shards]
    shown = set()
    for batch in take(dataset):
        assert batch.pictures['image'].shape == (8, 3, 8, 8) and batch.pictures['image'].dtype == torch.uint8 and batch.damaged == []
        for position in range(8):
            index = batch.nimg + position % 2 * 4 + position // 2
            shard, k = order.locate(index)
            sample = starts[shard] + k
            expected = np.asarray(Image.open(io.BytesIO(picture(sample)))).transpose(2, 0, 1)
            flipped = order.flip(index)
            assert np.array_equal(batch.pictures['image'][position], expected[:, :, ::-1] if flipped else expected)
            assert batch.labels[position] == sample % 3
            assert batch.keys[position] == f'{sample:09d}'
            shown.add(flipped)
    assert shown == {False, True}
    assert not all(torch.equal(a.pictures['image'], b.pictures['image']) for a, b in zip(take(dataset), take(dataset, flip=False)))


def test_every_epoch_shows_every_sample(folder):
    keys = [key for batch in take(open_dataset(folder), steps=15, batch=4) for key in batch.keys]
    for epoch in range(3):
        assert sorted(keys[epoch * 20:(epoch + 1) * 20]) == [f'{i:09d}' for i in range(20)]


@pytest.mark.parametrize('nimg', [8, 24, 56])
def test_resuming_gives_the_tail_of_the_straight_run(folder, nimg):
    dataset = open_dataset(folder)
    assert together([take(dataset, STEPS - nimg // 8, nimg=nimg)]) == together([take(dataset)])[nimg // 8:]


def test_one_shard_feeds_four_ranks(tmp_path):
    dataset = open_dataset(write_dataset(tmp_path / 'one', (9,)))
    ranks = [take(dataset, rank=rank, world=4, batch=4) for rank in range(4)]
    assert together(ranks) == together([take(dataset, batch=4)])
    assert sorted(batch.keys[0] for rank in ranks for batch in rank[:2]) == sorted(
        key for batch in take(dataset, steps=2, batch=4) for key in batch.keys)
    assert ranks[0][0].labels.tolist() == [0]


def find_member(content: bytes, name: str) -> tuple[int, int]:
    """Offsets of a member's header and of its data."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        info = tar.getmember(name)
    return info.offset, info.offset_data


def flip_bytes(content: bytes) -> bytes:
    _, data = find_member(content, '000000009.png')
    return content[:data + 20] + bytes(byte ^ 255 for byte in content[data + 20:data + 60]) + content[data + 60:]


def break_header(content: bytes) -> bytes:
    header, data = find_member(content, '000000009.png')
    return content[:header] + b'\xff' * 512 + content[data:]


def forge_size(content: bytes, size: int) -> bytes:
    """Write `size` into the header of a picture, in base 256."""
    _, data = find_member(content, '000000009.png')
    header = data - 512
    forged = content[header:header + 124] + (size % 2**96 | (size >= 0) << 95).to_bytes(12, 'big') + content[header + 136:data]
    total = sum(forged[:148] + b' ' * 8 + forged[156:])
    return content[:header] + forged[:148] + b'%06o\0 ' % total + forged[156:] + content[data:]


def resize_picture(content: bytes) -> bytes:
    _, data = find_member(content, '000000009.png')
    return content[:data] + picture(9, size=6) + content[data + len(picture(9, size=6)):]


def break_label(content: bytes) -> bytes:
    _, data = find_member(content, '000000009.cls')
    return content[:data] + b'7' + content[data + 1:]


@pytest.mark.parametrize('damage, name, reason', [
    (flip_bytes, '000000009.png', ''), (break_header, '000000009', 'not in the tar'),
    (partial(forge_size, size=-512), '000000009', 'not in the tar'),
    (resize_picture, '000000009.png', '6x6'), (break_label, '000000009.png', 'class is 7')])
@pytest.mark.parametrize('checksums', [True, False])
def test_a_damaged_sample_is_named_and_replaced_by_its_neighbour(folder, old_folder, tmp_path, checksums, damage, name, reason):
    whole = folder if checksums else old_folder
    expected = take(open_dataset(whole))
    copy = copy_dataset(whole, tmp_path / 'damaged')
    rewrite_shard(copy, 1, damage((copy / 'shard-00001.tar').read_bytes()))
    batches = take(open_dataset(copy))
    named = [line for batch in batches for line in batch.damaged]
    assert len(named) == sum(batch.keys.count('000000009') for batch in expected) > 2
    reason = 'says their CRC-32' if checksums and name.endswith('.png') else reason
    assert all(line.startswith(f'shard-00001.tar/{name}: ') and reason in line for line in named)
    for batch, straight in zip(batches, expected):
        assert batch.keys == ['000000010' if key == '000000009' else key for key in straight.keys]
        untouched = [i for i, key in enumerate(straight.keys) if key != '000000009']
        assert torch.equal(batch.pictures['image'][untouched], straight.pictures['image'][untouched])


def test_old_datasets_show_the_same_pictures(folder, old_folder):
    assert together([take(open_dataset(folder))]) == together([take(open_dataset(old_folder))])


@pytest.mark.parametrize('size', [1 << 33, 1 << 40, (1 << 63) - 1, 1 << 63])
def test_a_header_that_promises_any_size_costs_its_own_sample_alone(folder, tmp_path, size):
    copy = copy_dataset(folder, tmp_path / 'forged')
    content = (copy / 'shard-00001.tar').read_bytes()
    rewrite_shard(copy, 1, forge_size(content, size))
    reader = SampleReader(open_dataset(copy), (8, 8), max_open=1)
    shown = [reader.read(1, number) for number in range(5)]
    assert [sample.key for sample, _ in shown] == [f'{number:09d}' for number in (7, 8, 10, 10, 11)]
    assert [damaged for _, damaged in shown if damaged] == [[f'shard-00001.tar/000000009.png: 000000009.png is cut short, '
                                                              f'{len(content) - find_member(content, "000000009.png")[1]} '
                                                              f'of {size} bytes']]


def test_a_shard_cut_short_loses_only_its_end(old_folder, tmp_path):
    copy = copy_dataset(old_folder, tmp_path / 'cut')
    content = (copy / 'shard-00001.tar').read_bytes()
    _, data = find_member(content, '000000010.png')
    rewrite_shard(copy, 1, content[:data + 30])
    lost = ('000000010', '000000011')  # of 7 to 11: both are replaced by the shard's first
    batches = take(open_dataset(copy))
    for batch, straight in zip(batches, take(open_dataset(old_folder))):
        assert batch.keys == ['000000007' if key in lost else key for key in straight.keys]
    named = {line.split(':')[0] for batch in batches for line in batch.damaged}
    assert named == {'shard-00001.tar/000000010.png', 'shard-00001.tar/000000011'}


def test_a_shard_without_a_good_sample_stops_the_stream(old_folder, tmp_path):
    copy = copy_dataset(old_folder, tmp_path / 'zeros')
    rewrite_shard(copy, 1, bytes(8192))
    with pytest.raises(ShardError, match='shard-00001.tar: none of its 5 samples'):
        take(open_dataset(copy))


def flip_bit_of_checksums(content: bytes) -> bytes:
    _, data = find_member(content, '__checksums__')
    return content[:data + 15] + bytes([content[data + 15] ^ 1]) + content[data + 16:]


def cut_off_checksums(content: bytes) -> bytes:
    header, _ = find_member(content, '__checksums__')
    return content[:header] + bytes(len(content) - header)


@pytest.mark.parametrize('damage, reason', [
    (flip_bit_of_checksums, 'are not those in the manifest'), (cut_off_checksums, 'it has no __checksums__ of 5 samples')])
def test_a_shard_whose_checksums_are_damaged_stops_the_stream(folder, tmp_path, damage, reason):
    copy = copy_dataset(folder, tmp_path / 'damaged')
    rewrite_shard(copy, 1, damage((copy / 'shard-00001.tar').read_bytes()))
    with pytest.raises(ShardError, match=f'shard-00001.tar: .*{reason}.*; copy the shard again'):
        take(open_dataset(copy))


def test_a_shard_of_another_dataset_is_refused_though_it_has_the_same_size_and_keys(folder, tmp_path):
    other = write_dataset(tmp_path / 'other', SIZES, classes=3, encoding='webp')
    copy = copy_dataset(folder, tmp_path / 'swapped')
    size = (copy / 'shard-00001.tar').stat().st_size
    shutil.copy(other / 'shard-00001.tar', copy)
    assert (copy / 'shard-00001.tar').stat().st_size == size
    with pytest.raises(ShardError, match='shard-00001.tar: .* it is damaged, or of another dataset'):
        take(open_dataset(copy))


@pytest.mark.parametrize('encoding, step', [('png', 3), ('webp', 1), ('jpeg', 3)])
def test_no_flipped_bit_of_a_picture_or_label_is_used(tmp_path, encoding, step):
    suffix = 'jpg' if encoding == 'jpeg' else encoding
    with ShardWriter(tmp_path, suffix, 10**6) as writer:
        for number in range(3):
            writer.write([picture(number, encoding)], number)
    Manifest((8, 8), 3, encoding, ('a', 'b', 'c'), (1, 1, 1), tuple(writer.shards)).write(tmp_path)
    path = tmp_path / 'shard-00000.tar'
    content = path.read_bytes()
    (_, start), (_, label) = find_member(content, f'000000001.{suffix}'), find_member(content, '000000001.cls')
    bits = [*range(0, 8 * len(picture(1, encoding)), step), *range(8 * (label - start), 8 * (label - start) + 8)]
    used = []
    with open(path, 'r+b', buffering=0) as file:
        reader = SampleReader(open_dataset(tmp_path), (8, 8), max_open=1)   # opens the shard once: bits flip under it
        for bit in bits:
            place, mask = start + bit // 8, 1 << bit % 8
            os.pwrite(file.fileno(), bytes([content[place] ^ mask]), place)
            sample, damaged = reader.read(0, 1)
            os.pwrite(file.fileno(), content[place:place + 1], place)
            if sample.key == '000000001' or len(damaged) != 1:
                used.append(bit)
    assert reader.read(0, 1)[0].key == '000000001' and len(bits) > 400
    assert used == []


def test_a_missing_or_shortened_local_shard_stops_the_stream(folder, tmp_path):
    copy = copy_dataset(folder, tmp_path / 'missing')
    shard = copy / 'shard-00002.tar'
    os.truncate(shard, 1000)
    with pytest.raises(ShardError, match='shard-00002.tar.* has 1000 bytes'):
        take(open_dataset(copy))
    shard.unlink()
    with pytest.raises(ShardError, match='shard-00002.tar cannot be opened: .*No such file'):
        take(open_dataset(copy))


def test_pictures_are_shown_smaller_and_in_the_manifests_channels(folder):
    dataset = open_dataset(folder)
    batch = take(dataset, steps=1, resolution=(4, 4), flip=False)[0]
    small = Image.open(io.BytesIO(picture(int(batch.keys[0])))).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(batch.pictures['image'][0], np.asarray(small).transpose(2, 0, 1))
    grey = Dataset(replace(dataset.manifest, channels=1), dataset.source)
    assert take(grey, steps=1)[0].pictures['image'].shape == (8, 1, 8, 8)


def test_what_cannot_be_streamed_is_refused_at_the_call(folder):
    dataset = open_dataset(folder)
    unsized = Dataset(replace(dataset.manifest, resolution=None), dataset.source)
    for source, changes, message in [
            (dataset, {'resolution': (16, 16)}, 'resolution=16x16 .*8x8.*imago pack --resolution 16x16'),
            (dataset, {'resolution': (4, 8)}, 'resolution=4x8 must have the aspect ratio'),
            (unsized, {'resolution': (8, 8)}, 'own sizes.*imago pack --resolution 8x8'),
            (dataset, {'lanes': 24, 'batch': 24}, 'data.lanes=24 .*20'),
            (dataset, {'batch': 6}, 'batch=6'),
            (dataset, {'world': 3}, 'data.lanes=4 .* 3 ranks'),
            (dataset, {'nimg': 2}, 'nimg=2')]:
        with pytest.raises(ValueError, match=message):
            take(source, 0, **changes)


def test_streaming_leaves_the_global_random_numbers_alone(folder):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    take(open_dataset(folder), steps=2)
    take(open_dataset(folder), steps=2, workers=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_workers_outlive_a_signal_to_the_group_but_their_death_is_an_error(folder):
    batches = stream(open_dataset(folder), batch=8, lanes=4, seed=1, rank=0, world=1, nimg=0, resolution=(8, 8),
                     flip=False, workers=1)
    next(batches)
    worker, = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert [next(batches).nimg for _ in range(6)] == [8, 16, 24, 32, 40, 48]
    with pytest.raises(RuntimeError, match='DataLoader worker .*(killed|exited|died)'):
        os.kill(worker.pid, signal.SIGKILL)
        list(itertools.islice(batches, 8))


def test_closing_ends_the_workers(folder):
    take(open_dataset(folder), steps=1, workers=1)
    assert multiprocessing.active_children() == []


SCRIPT = '''
import os, signal, sys
from imago.trainer.data.shards import open_dataset
from imago.trainer.data.stream import stream
if __name__ == '__main__':
    batches = stream(open_dataset(sys.argv[1]), batch=8, lanes=4, seed=1, rank=0, world=1, nimg=0, resolution=(8, 8),
                     flip=False, workers=1)
    next(batches)
    {end}
'''


# the traceback lives until the process exits, and keeps the loader alive
FAILS_AND_IS_KEPT = '''os.truncate(sys.argv[1] + '/shard-00000.tar', 0)
    try:
        list(batches)
    except Exception as error:
        kept = error'''


@pytest.mark.parametrize('end, status', [
    ('raise KeyError("stopped")', 1), (FAILS_AND_IS_KEPT, 0), ('os.kill(os.getpid(), signal.SIGKILL)', -signal.SIGKILL)])
def test_workers_do_not_outlive_their_parent(folder, tmp_path, end, status):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(end=end))
    root = str(Path(__file__).parents[2])
    # run() waits for the end of stderr, which the workers hold as well
    done = subprocess.run([sys.executable, script, copy_dataset(folder, tmp_path / 'own')], stderr=subprocess.PIPE, timeout=60,
                          env=os.environ | {'PYTHONPATH': root})
    assert done.returncode == status
