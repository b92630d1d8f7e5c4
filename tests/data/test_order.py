import tracemalloc

import numpy as np
import pytest

from imago.trainer.data.manifest import Manifest, Shard
from imago.trainer.data.order import Order, batch_indices


def make_manifest(*sizes: int) -> Manifest:
    firsts = np.cumsum([0, *sizes])
    shards = (Shard(f'{i}.tar', int(first), size, 1, '0' * 64) for i, (first, size) in enumerate(zip(firsts, sizes)))
    return Manifest((8, 8), 3, 'png', (), (), tuple(shards))


def test_the_order_is_the_one_that_older_runs_were_trained_in():
    order = Order(make_manifest(7, 5, 8), lanes=4, seed=1)
    assert [order.locate(i) for i in range(24)] == [
        (2, 0), (2, 6), (1, 1), (0, 1), (2, 7), (2, 5), (1, 0), (0, 3), (2, 2), (2, 3), (1, 3), (0, 5),
        (2, 1), (1, 4), (0, 0), (0, 6), (2, 4), (1, 2), (0, 4), (0, 2), (0, 0), (2, 6), (1, 3), (0, 1)]
    assert [order.flip(i) for i in range(12)] == [bool(int(bit)) for bit in '011000111111']


@pytest.mark.parametrize('sizes, lanes', [((7, 5, 8), 4), ((10,), 4), ((1, 1, 1), 3), ((6, 4, 1), 1), ((9, 4), 12)])
def test_each_epoch_shows_every_sample_once(sizes, lanes):
    manifest = make_manifest(*sizes)
    order, n = Order(manifest, lanes, seed=3), sum(sizes)
    shown = [[order.locate(number * lanes + lane) for number in range(2 * n)] for lane in range(lanes)]
    everything = sorted((shard, k) for shard, size in enumerate(sizes) for k in range(size))
    starts = [0] * lanes
    for epoch in range(2 * lanes):
        union = []
        for lane in range(lanes):
            segment = (lane + epoch) % lanes
            end = starts[lane] + (segment + 1) * n // lanes - segment * n // lanes
            union += shown[lane][starts[lane]:end]
            starts[lane] = end
        assert sorted(union) == everything
        assert max(starts) - min(starts) <= 1


def test_shards_and_the_samples_in_them_are_shuffled_anew_each_epoch():
    sizes = (40,) * 6
    order = Order(make_manifest(*sizes), lanes=1, seed=0)
    epochs = [[order.locate(i) for i in range(e * 240, (e + 1) * 240)] for e in range(3)]
    turns = [tuple(dict.fromkeys(shard for shard, _ in epoch)) for epoch in epochs]
    inside = [tuple(k for shard, k in epoch if shard == 2) for epoch in epochs]
    assert len(set(turns) | {(0, 1, 2, 3, 4, 5)}) == 4
    assert len(set(inside) | {tuple(range(40))}) == 4
    assert inside[0] != tuple(k for shard, k in epochs[0] if shard == 3)
    assert epochs[0] != [Order(make_manifest(*sizes), lanes=1, seed=1).locate(i) for i in range(240)]


def test_flips_are_a_fair_coin():
    order = Order(make_manifest(5), lanes=1, seed=0)
    assert 4700 < sum(order.flip(i) for i in range(10000)) < 5300


def test_any_place_in_ten_million_samples_is_found_without_listing_them():
    order = Order(make_manifest(*[1000] * 10000), lanes=64, seed=0)
    tracemalloc.start()
    places = {order.locate(3 * 10**9 // 64 * 64 + i) for i in range(64)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(places) == 64
    assert peak < 8e6


@pytest.mark.parametrize('world', [1, 2, 4])
def test_ranks_cut_the_global_batch_into_whole_lanes(world):
    parts = [batch_indices(24, 16, 8, rank, world) for rank in range(world)]
    whole = np.concatenate(parts)
    assert whole.tolist() == [24 + k * 8 + lane for lane in range(8) for k in range(2)]
    for rank, part in enumerate(parts):
        assert set(part % 8) == set(range(rank * 8 // world, (rank + 1) * 8 // world))
    assert whole.dtype == np.int64


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r'data\.lanes=6 .* 4 ranks; use e.g. data\.lanes=12 and batch=24'):
        batch_indices(0, 18, 6, 0, 4)
    batch_indices(0, 24, 12, 0, 4)
    with pytest.raises(ValueError, match='batch=12 .*data.lanes=8.*batch=16'):
        batch_indices(0, 12, 8, 0, 1)
    batch_indices(0, 16, 8, 0, 1)
    with pytest.raises(ValueError, match='nimg=12 .*data.lanes=8.*start at 8'):
        batch_indices(12, 16, 8, 0, 1)
    with pytest.raises(ValueError, match='data.lanes=11 .*10.*at most 10'):
        Order(make_manifest(6, 4), lanes=11, seed=0)
