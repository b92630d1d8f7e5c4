"""Parts of pictures at places that the index draws."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import tiny_config, train_here
from shards_for_tests import picture, take, write_dataset

from imago.trainer.data.manifest import Manifest, Shard
from imago.trainer.data.order import Order
from imago.trainer.data.shards import SampleReader, open_dataset
from imago.trainer.data.stream import Batch, check_resolution
from imago.trainer.metrics.pictures import ShardPictures
from imago.trainer.pack.shards import ShardWriter
from imago.trainer.start import prepare

SIDES = [(8, 8), (9, 12), (12, 8), (10, 10), (8, 13)]     # of the pictures that keep their own sizes


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Pictures of 8x8 pixels."""
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', (7, 5, 8))


def mixed(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIDES[number], 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def mixed_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('mixed')
    return write_mixed(folder, [mixed(number) for number in range(5)], (8, 8))


def write_mixed(folder: Path, pictures: list[np.ndarray], smallest: tuple[int, int] | None) -> Path:
    with ShardWriter(folder, 'png', 10**6) as writer:
        for pixels in pictures:
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, 'png')
            writer.write([out.getvalue()], None)
    Manifest(None, 3, 'png', (), (), tuple(writer.shards), smallest).write(folder)
    return folder


def joined(ranks: list[list[Batch]]) -> list[torch.Tensor]:
    """The pictures [NCHW] of the global batches that the ranks hold parts of."""
    return [torch.cat([part.pictures['image'] for part in parts]) for parts in zip(*ranks)]


@pytest.mark.filterwarnings('ignore:This DataLoader will create')
@pytest.mark.parametrize('world, workers', [(2, 0), (4, 0), (1, 1)])
def test_ranks_and_workers_do_not_change_the_crops(folder, world, workers):
    dataset = open_dataset(folder, crop=(4, 5))
    ranks = [take(dataset, 3, rank=rank, world=world, workers=workers) for rank in range(world)]
    assert all(map(torch.equal, joined(ranks), joined([take(dataset, 3)])))


def test_a_crop_is_the_part_at_the_place_of_its_index_then_flipped(folder):
    dataset, shown = open_dataset(folder, crop=(4, 5)), set()
    order, starts = Order(dataset.manifest, 4, 1), [shard.first for shard in dataset.manifest.shards]
    for batch in take(dataset):
        for position in range(8):
            index = batch.nimg + position % 2 * 4 + position // 2
            shard, number = order.locate(index)
            whole = np.asarray(Image.open(io.BytesIO(picture(starts[shard] + number)))).transpose(2, 0, 1)
            parts = {(top, left): whole[:, top:top + 4, left:left + 5] for top in range(5) for left in range(4)}
            seen = batch.pictures['image'][position].numpy()
            seen = seen[:, :, ::-1] if order.flip(index) else seen
            there, = (place for place, part in parts.items() if np.array_equal(part, seen))
            assert there == tuple(int(share * room) for share, room in zip(order.place(index), (5, 4)))
            shown.add(there)
    assert len(shown) > 15      # of 20 places, with 48 pictures


def test_all_places_are_as_likely():
    manifest = Manifest((8, 8), 3, 'png', (), (), (Shard('0.tar', 0, 1, 1024, '0' * 64),))
    order = Order(manifest, 1, 0)
    places = [order.place(index) for index in range(8000)]
    counts = np.zeros((2, 4))
    for down, across in places:
        assert 0 <= down < 1 and 0 <= across < 1
        counts[int(2 * down), int(4 * across)] += 1
    assert counts.min() > 900 and counts.max() < 1100
    assert places != [Order(manifest, 1, 1).place(index) for index in range(8000)]


def test_pictures_of_mixed_sizes_are_shown_in_parts(mixed_folder):
    seen = set()
    for batch in take(open_dataset(mixed_folder, crop=(8, 8)), 10, batch=4, flip=False):
        for pixels, key in zip(batch.pictures['image'].numpy().transpose(0, 2, 3, 1), batch.keys):
            whole = mixed(int(key))
            places = [(top, left) for top in range(len(whole) - 7) for left in range(whole.shape[1] - 7)
                      if np.array_equal(whole[top:top + 8, left:left + 8], pixels)]
            assert len(places) == 1 and batch.damaged == []
            seen.add((int(key), *places[0]))
    assert len(seen) > 15


def test_a_crop_is_brought_to_the_resolution(folder):
    dataset = open_dataset(folder, crop=(6, 6))
    for large, small in zip(take(dataset, flip=False), take(dataset, flip=False, resolution=(3, 3))):
        for whole, seen in zip(large.pictures['image'], small.pictures['image']):
            image = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize((3, 3), Image.Resampling.LANCZOS)
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), seen)


def test_where_no_index_says_otherwise_a_sample_always_shows_the_same_part(mixed_folder):
    dataset = open_dataset(mixed_folder, crop=(8, 8))
    pictures = ShardPictures(dataset, (8, 8), 5, 0)
    parts = [pictures.read(index)[0] for index in range(5)]
    again = SampleReader(dataset, (8, 8), 1)
    assert all(np.array_equal(part, again.read(0, number)[0].image) for number, part in enumerate(parts))
    assert pictures.digest != ShardPictures(open_dataset(mixed_folder, crop=(8, 7)), (8, 7), 5, 0).digest
    assert pictures.digest.startswith(dataset.manifest.digest())


def test_crops_that_do_not_fit_are_refused_before_the_start(folder, mixed_folder):
    with pytest.raises(ValueError, match='data.crop=9x4 is larger than .* 8x8; use a smaller one, such as 8x4'):
        check_resolution(open_dataset(folder, crop=(9, 4)), (9, 4))
    with pytest.raises(ValueError, match='data.crop=9x9 is larger than .* 8x8'):
        check_resolution(open_dataset(mixed_folder, crop=(9, 9)), (9, 9))
    with pytest.raises(ValueError, match='own sizes; show parts of them by data.crop=8x8, or .*--resolution 8x8'):
        check_resolution(open_dataset(mixed_folder), (8, 8))
    with pytest.raises(ValueError, match='resolution=4x4 must have the aspect ratio of data.crop=8x4'):
        check_resolution(open_dataset(folder, crop=(8, 4)), (4, 4))


def test_a_picture_that_is_smaller_than_the_crop_is_named_like_a_damaged_one(tmp_path):
    """Manifests of before do not tell the smallest sides."""
    dataset = open_dataset(write_mixed(tmp_path, [mixed(number) for number in range(5)], None), crop=(9, 10))
    sample, damaged = SampleReader(dataset, (9, 10), 1).read(0, 4)
    assert sample.key == '000000001' and np.array_equal(sample.image.shape, (9, 10, 3))
    assert damaged == ['shard-00000.tar/000000004.png: 8x13 pixels are too few for data.crop=9x10',
                       'shard-00000.tar/000000000.png: 8x8 pixels are too few for data.crop=9x10']


def test_manifests_of_one_size_say_what_they_always_said(folder, mixed_folder):
    assert 'smallest' not in (folder / 'dataset.json').read_text()
    text = (mixed_folder / 'dataset.json').read_text()
    assert Manifest.from_json(text, 'test').smallest == (8, 8)
    with pytest.raises(ValueError, match=r'smallest is \(0, 8\), neither'):
        Manifest.from_json(text.replace('8,\n  8\n', '0,\n  8\n'), 'test')


def test_a_run_is_trained_on_crops_and_refuses_to_go_on_with_others(mixed_folder, tmp_path):
    data = {'path': str(mixed_folder), 'lanes': 4, 'workers': 0, 'crop': 8, 'flip': True}
    config = tiny_config(mixed_folder, tmp_path / 'run', data=data, batch=4, micro_batch=2, total_kimg=0.004)
    train_here(config)
    assert np.asarray(Image.open(tmp_path / 'run' / 'grids' / 'reals.png')).shape == (256, 256, 3)     # enlarged 16 times
    other = tiny_config(mixed_folder, tmp_path / 'run', data=data | {'crop': '8x4'}, batch=4, micro_batch=2)
    with pytest.raises(ValueError, match='data.crop'):
        prepare(other)
    with pytest.raises(ValueError, match=r'data.crop=16x16 is larger than .* 8x8'):
        prepare(tiny_config(mixed_folder, tmp_path / 'new', data=data | {'crop': 16}, batch=4, micro_batch=2))
    assert not (tmp_path / 'new').exists()
