"""Two pictures at a time: pairs that lie in one sample, and two datasets in orders of their own."""

import hashlib
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import tiny_config
from shards_for_tests import copy_dataset, picture, rewrite_shard, take, write_dataset

from imago.trainer.config.games import Latent
from imago.trainer.config.load import Config
from imago.trainer.config.plan import Plan
from imago.trainer.data.manifest import Manifest
from imago.trainer.data.order import Order
from imago.trainer.data.shards import Dataset, open_dataset
from imago.trainer.data.stream import Batch
from imago.trainer.pack.shards import ShardWriter
from imago.trainer.runs.dataset import lanes_of, open_checked

SAMPLES = (7, 5)


def pixels(number: int) -> np.ndarray:
    """[CHW]"""
    return np.asarray(Image.open(io.BytesIO(picture(number)))).transpose(2, 0, 1)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory) -> Path:
    """Twelve pairs; the b of sample i is picture 100 + i."""
    folder = tmp_path_factory.mktemp('pairs')
    with ShardWriter(folder, 'png', 10**6, ('a', 'b')) as writer:
        for number in range(sum(SAMPLES)):
            if number in itertools.accumulate(SAMPLES):
                writer.close()
            writer.write([picture(number), picture(100 + number)], None)
    Manifest((8, 8), 3, 'png', (), (), tuple(writer.shards), domains=('a', 'b')).write(folder)
    return folder


@pytest.fixture(scope='module')
def singles(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', (7, 5, 8))


@pytest.fixture(scope='module')
def others(tmp_path_factory) -> Path:
    """Thirteen pictures with classes, so that the bytes of the shards differ from those of `singles`."""
    return write_dataset(tmp_path_factory.mktemp('data') / 'others', (9, 4), classes=2)


def joined(ranks: list[list[Batch]]) -> list[tuple]:
    return [({domain: torch.cat([part.pictures[domain] for part in parts]).tolist() for domain in parts[0].pictures},
             [key for part in parts for key in part.keys]) for parts in zip(*ranks)]


def test_both_pictures_of_a_sample_are_shown_flipped_and_cropped_alike(pairs):
    for crop in (None, (5, 4)):
        dataset, shown = open_dataset(pairs, crop=crop), set()
        order = Order(dataset.manifest, 4, 1)
        for batch in take(dataset):
            assert list(batch.pictures) == ['a', 'b'] and batch.damaged == []
            for position, key in enumerate(batch.keys):
                index = batch.nimg + position % 2 * 4 + position // 2
                top, left = (int(share * room) for share, room in zip(order.place(index), (4, 5))) if crop else (0, 0)
                height, width = crop or (8, 8)
                for first, images in zip((0, 100), batch.pictures.values()):
                    part = pixels(first + int(key))[:, top:top + height, left:left + width]
                    assert np.array_equal(images[position], part[:, :, ::-1] if order.flip(index) else part)
                shown.add((order.flip(index), top, left))
        assert {flipped for flipped, *_ in shown} == {False, True} and len(shown) > (20 if crop else 1)


@pytest.mark.parametrize('world, workers', [(2, 0), (4, 0), (1, 1)])
def test_ranks_and_workers_do_not_change_what_two_datasets_show(singles, others, world, workers):
    dataset = replace(open_dataset(singles), b=open_dataset(others))
    ranks = [take(dataset, 3, rank=rank, world=world, workers=workers) for rank in range(world)]
    assert joined(ranks) == joined([take(dataset, 3)])
    assert joined([take(dataset, 2, nimg=8)]) == joined([take(dataset, 3)])[1:]


def test_a_second_dataset_has_an_order_of_its_own_at_the_same_indices(singles):
    """This holds even if both are the same dataset."""
    alone, dataset = open_dataset(singles), replace(open_dataset(singles), b=open_dataset(singles))
    both = take(dataset, 15, batch=4)
    assert all(torch.equal(a.pictures['a'], b.pictures['image']) for a, b in zip(both, take(alone, 15, batch=4), strict=True))
    order = Order(alone.manifest, 4, '1/b')
    firsts, seen, same = [shard.first for shard in alone.manifest.shards], [], 0
    for batch in both:
        for position, key in enumerate(batch.keys):
            a, b = key.split('+')
            shard, number = order.locate(batch.nimg + position)
            assert int(b) == firsts[shard] + number
            whole = pixels(int(b))
            flipped = order.flip(batch.nimg + position)
            assert np.array_equal(batch.pictures['b'][position], whole[:, :, ::-1] if flipped else whole)
            seen.append(int(b))
            same += a == b
    assert sorted(seen[:20]) == list(range(20)) and same < 15


def test_damaged_pictures_of_two_datasets_are_named_by_their_domain(singles, others, tmp_path):
    copies = []
    for name, folder in (('a', singles), ('b', others)):
        copies.append(copy_dataset(folder, tmp_path / name))
        content = (copies[-1] / 'shard-00001.tar').read_bytes()
        rewrite_shard(copies[-1], 1, content.replace(b'IDAT', b'IDOT', 1))
    dataset = replace(open_dataset(copies[0]), b=open_dataset(copies[1]))
    named = {text[:32] for batch in take(dataset, 8) for text in batch.damaged}
    assert named == {'a: shard-00001.tar/000000007.png', 'b: shard-00001.tar/000000009.png'}


def test_the_digest_of_a_run_is_of_both_datasets(singles, others):
    a, b = open_dataset(singles), open_dataset(others)
    assert a.digest() == a.manifest.digest()
    assert replace(a, b=b).digest() == hashlib.sha256(f'{a.digest()} {b.digest()}'.encode()).hexdigest()


def data_of(path: Path, **changes: object) -> dict:
    return {'path': str(path), 'lanes': 4, 'workers': 0, **changes}


def test_games_refuse_domains_that_they_do_not_take(singles, others, pairs, tmp_path, monkeypatch):
    def config(data: dict) -> Config:
        return tiny_config(singles, tmp_path / 'run', data=data, batch=4, micro_batch=2)

    def check(data: dict) -> Dataset:
        return open_checked(config(data))
    with pytest.raises(ValueError, match='game.name=latent takes single pictures, .*pack one folder, without --pair'):
        check(data_of(pairs))
    with pytest.raises(ValueError, match='game.name=latent takes single pictures, .*leave data.path_b out'):
        check(data_of(singles, path_b=str(others)))
    own = Latent.plan

    def plan(self: Latent, *args: object) -> Plan:
        return replace(own(self, *args), domains=('a', 'b'))
    monkeypatch.setattr(Latent, 'plan', plan)
    with pytest.raises(ValueError, match='latent takes pictures of the domains a and b, .* are of image; .*--pair B OUT'):
        check(data_of(singles))
    assert check(data_of(pairs)).domains == ('a', 'b')
    both = check(data_of(singles, path_b=str(others)))
    assert both.domains == ('a', 'b') and both.b.manifest.num_samples == 13
    with pytest.raises(ValueError, match='pairs already; leave data.path_b out'):
        check(data_of(singles, path_b=str(pairs)))
    with pytest.raises(ValueError, match='data.path_b=.*nowhere does not exist'):
        check(data_of(singles, path_b=str(tmp_path / 'nowhere')))
    with pytest.raises(ValueError, match='data.lanes=16 is more than the 13 pictures'):
        lanes_of(config(data_of(singles, path_b=str(others), lanes=16)), both, 1)


def test_manifests_of_single_pictures_do_not_speak_of_domains(singles, pairs):
    assert 'domains' not in (singles / 'dataset.json').read_text()
    text = (pairs / 'dataset.json').read_text()
    assert Manifest.from_json(text, 'test').to_json() == text
    with pytest.raises(ValueError, match='domains is .* neither'):
        Manifest.from_json(text.replace('"b"', '"c"'), 'test')
