"""Reals have the continuous conditions that are packed with them; fakes have those of other pictures of the data."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from families_for_tests import FAMILIES, config_of
from PIL import Image
from runs_for_tests import differing, largest_difference, on_ranks, train_here
from shards_for_tests import picture

from imago.trainer import start
from imago.trainer.data.conditions import from_text
from imago.trainer.data.manifest import Manifest
from imago.trainer.data.shards import open_dataset
from imago.trainer.data.stream import Batch, stream
from imago.trainer.games import make_game
from imago.trainer.games.makers import to_pictures
from imago.trainer.pack.shards import ShardWriter
from imago.trainer.plan.preflight import describe_needs
from imago.trainer.runs.export import load_generator, open_maker
from imago.trainer.start import prepare
from imago.trainer.tools.export import main as export
from imago.trainer.tools.sample import main as sample

VALUES = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
CONTINUOUS = {'data': {'conditional': 'continuous'}}


def pack(folder: Path, values: np.ndarray) -> Path:
    """Pictures of 32 px in three shards, with these conditions."""
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, 'png', 10**6) as writer:
        for number, row in enumerate(values):
            if number in (13, 23):
                writer.close()
            writer.write([picture(number, size=32)], None, row)
    Manifest((32, 32), 3, 'png', (), (), tuple(writer.shards), condition_shape=values.shape[1:]).write(folder)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return pack(tmp_path_factory.mktemp('conditions'), VALUES)


def take(folder: Path, steps: int, **changes) -> list[Batch]:
    settings = dict(batch=12, lanes=12, seed=0, rank=0, world=1, nimg=0, resolution=(32, 32), flip=False, workers=0)
    batches = stream(open_dataset(folder), **(settings | changes))
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def numbers(conditions: torch.Tensor) -> list[int]:
    """Return the numbers of the samples whose conditions these are. conditions: [N, d]"""
    return [int(np.flatnonzero((row.numpy() == VALUES).all(axis=1)).item()) for row in conditions]


def test_fakes_have_the_conditions_of_others_in_the_shard_as_often_as_the_data(folder):
    lent, shards = [], np.searchsorted([13, 23, 30], range(30), side='right')
    for batch in take(folder, 100):
        own, other = numbers(batch.conditions), numbers(batch.drawn_conditions)
        assert own == [int(key) for key in batch.keys]
        assert shards[own].tolist() == shards[other].tolist()
        lent += [(a, b) for a, b in zip(own, other)]
    counts = np.bincount([b for _, b in lent], minlength=30)
    assert counts.min() > 15 and counts.max() < 75         # 40 are expected
    assert 60 < sum(a == b for a, b in lent) < 180          # a tenth of 1200 is expected by chance


def test_ranks_and_the_start_do_not_change_them(folder):
    whole = [batch.drawn_conditions.tolist() for batch in take(folder, 3)]
    ranks = [take(folder, 3, rank=rank, world=2) for rank in (0, 1)]
    assert [a.drawn_conditions.tolist() + b.drawn_conditions.tolist() for a, b in zip(*ranks)] == whole
    assert [batch.drawn_conditions.tolist() for batch in take(folder, 2, nimg=12)] == whole[1:]
    assert [batch.drawn_conditions.tolist() for batch in take(folder, 1, seed=1)] != whole[:1]


@pytest.mark.parametrize('loss', ['nonsaturating', 'relativistic'])
def test_a_game_shows_each_picture_with_its_condition(folder, tmp_path, loss):
    run = prepare(config_of('stylegan2', folder, tmp_path / 'run', 1, **CONTINUOUS, loss={'name': loss}))
    game = make_game(run.config, run.plan, run.state)
    batch = take(folder, 1, resolution=(16, 16))[0]
    micros = game.micro_batches(batch, game.phases()[0])
    assert torch.equal(torch.cat([micro.labels for micro in micros]), batch.conditions)
    # a loss that compares each fake with a real gives both one condition
    of_fakes = batch.conditions if loss == 'relativistic' else batch.drawn_conditions
    assert torch.equal(torch.cat([micro.fake_labels for micro in micros]), of_fakes)


@pytest.mark.parametrize('name', ['stylegan2', 'r3gan', 'biggan'])
def test_runs_train_resume_export_and_sample(name, folder, tmp_path):
    half = config_of(name, folder, tmp_path / 'run', 1, **CONTINUOUS, total_kimg=0.024)
    train_here(half)
    resumed = train_here(config_of(name, folder, tmp_path / 'run', 1, **CONTINUOUS))
    straight = train_here(config_of(name, folder, tmp_path / 'straight', 1, **CONTINUOUS))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    size = 32 if name == 'biggan' else 16
    assert export([str(tmp_path / 'run'), str(tmp_path / 'export')]) == 0
    for source in ('run', 'export'):
        maker, about = open_maker(tmp_path / source)
        assert about['class_names'] == () and maker.G.c_dim == 5 and maker.classes == 0
        assert np.array_equal(maker.conditions, VALUES)      # those of the first pictures, here of all
        inputs = maker.inputs(range(8))
        assert torch.equal(maker.c(inputs), torch.tensor(VALUES)[inputs.labels]) and len(set(inputs.labels.tolist())) > 3
        z = inputs.z[:1].expand(2, -1)
        a, b = load_generator(tmp_path / source)(z, torch.tensor(VALUES[:2]))
        assert a.shape == (3, size, size) and not torch.equal(a, b)
        assert sample([str(tmp_path / source), '--seeds', '0-3', '--out', str(tmp_path / f'of {source}')]) == 0
        assert len(list((tmp_path / f'of {source}').iterdir())) == 4


@pytest.fixture(scope='module')
def generator(folder, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp('asked') / 'run'
    train_here(config_of('r3gan', folder, run, 1, **CONTINUOUS, total_kimg=0.012))
    return run


def pictures(generator: Path, out: Path, *options: str) -> list[np.ndarray]:
    assert sample([str(generator), '--out', str(out), *options]) == 0
    return [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]


def test_pictures_are_made_of_the_condition_asked_for(generator, tmp_path):
    maker, _ = open_maker(generator)
    inputs = maker.inputs(range(3), conditions=VALUES[4:7])
    expected = to_pictures(load_generator(generator)(inputs.z, torch.tensor(VALUES[4:7])))
    np.save(tmp_path / 'rows.npy', VALUES[4:7])
    rows = {f'any{9 - number}': row.tolist() for number, row in enumerate(VALUES[4:7])}    # in their order, whatever their names
    (tmp_path / 'rows.csv').write_text(''.join(f'{name},{",".join(map(repr, row))}\n' for name, row in rows.items()))
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    for kind in 'npy', 'csv', 'json':
        found = pictures(generator, tmp_path / kind, '--seeds', '0-2', '--condition', str(tmp_path / f'rows.{kind}'))
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    # one for all, from a file and as numbers, of which the first is negative
    np.save(tmp_path / 'one.npy', VALUES[4:5])
    assert VALUES[4, 0] < 0
    of_one = [pictures(generator, tmp_path / f'one {number}', '--seeds', '0-1', '--condition', text) for number, text in
              enumerate((str(tmp_path / 'one.npy'), ','.join(map(repr, VALUES[4].tolist()))))]
    assert np.array_equal(*of_one) and np.array_equal(of_one[0][0], expected[0]) and not np.array_equal(of_one[0][1], expected[1])


@pytest.mark.parametrize('options, message', [
    (['--condition', '1,2,3'], 'condition: there are 3 numbers for a picture, and this generator takes 5; give 5'),
    (['--condition', '-1,2'], 'there are 2 numbers for a picture'),
    (['--condition', '1,2,x,4,5'], "'x'; write numbers as 0.2,1.5,-3, or give a FILE.npy, .csv or .json"),
    (['--condition', ''], "--condition '': could not"), (['--condition', '1,2,nan,4,5'], 'no float32 holds; give finite ones'),
    (['--condition', '1,2,1e99,4,5'], 'no float32 holds'),
    (['--condition', 'none.npy'], '--condition none.npy does not exist'),
    (['--condition', 'rows.npy', '--seeds', '0-3'], '--condition rows.npy has 3 rows for 4 seeds; give one row for all, or 4'),
    (['--condition', 'sequences.npy'], '--condition sequences.npy holds sequences [32, 5, 1]; give a row of numbers'),
    (['--class', '2'], '--class 2: this generator has no classes but conditions of 5 numbers; choose one by --condition'),
    (['--class', '2', '--condition', '1,2,3,4,5'], '--class 2: this generator has no classes'),
])
def test_choices_that_make_no_sense_are_one_line(generator, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    np.save('rows.npy', VALUES[:3])
    np.save('sequences.npy', np.zeros((32, 5, 1)))
    assert sample([str(generator), '--out', 'out', *options]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert message in line and not Path('out').exists()


def test_two_ranks_train_like_one(folder, tmp_path):
    together, other = on_ranks(2, train_here, config_of('r3gan', folder, tmp_path / 'two', 2, **CONTINUOUS))
    assert not differing(together, other)
    alone = train_here(config_of('r3gan', folder, tmp_path / 'one', 1, **CONTINUOUS))
    assert largest_difference(together, alone) < 1e-3


def test_no_more_conditions_are_kept_than_a_checkpoint_should_hold(tmp_path):
    values = np.random.default_rng(1).normal(size=(80, 2048)).astype(np.float32)
    config = config_of('stylegan2', pack(tmp_path / 'data', values), tmp_path / 'run', 1, **CONTINUOUS)
    kept = from_text(prepare(config).plan.conditions, 2048)
    assert np.array_equal(kept, values[:64])


def test_the_dry_run_tells_of_them(folder, tmp_path):
    config = config_of('stylegan2', folder, tmp_path / 'run', 1, **CONTINUOUS)
    assert ', conditions of 5 values' in describe_needs(config, open_dataset(folder).manifest, 1, 'cpu')


@pytest.mark.parametrize('name, changes, message', [
    ('dcgan', {}, 'network.name=dcgan, which takes classes alone; use'),
    ('mad-gan', {'network': FAMILIES['r3gan']['network']}, 'game.name=mad_gan with data.conditional=continuous'),
    ('r3gan', {'loss': {'name': 'hinge', 'auxiliary': 0.5}}, 'loss.auxiliary=0.5 with .*=continuous: there are no classes'),
    ('stylegan2', {'guard': {'data': 'held-out'}}, 'guard.data with data.conditional=continuous'),
    ('stylegan2', {'evaluate': {'interval_kimg': 1, 'metrics': ['intra_fid']}}, 'intra_fid, which is of classes'),
    ('stylegan2', {'data': {'conditional': 'yes and no'}}, 'data.conditional=yes and no: '),
])
def test_what_needs_classes_is_refused(folder, tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(name, folder, tmp_path / 'run', 1, **(CONTINUOUS | changes))


@pytest.mark.parametrize('name', ['stylegan2', 'r3gan', 'biggan'])
def test_data_without_vectors_are_refused_before_any_work(name, wide_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(start, 'make_state', None)
    monkeypatch.setattr(start, 'agree_on_kernels', None)
    sequences = pack(tmp_path / 'data', VALUES.reshape(30, 5, 1))
    for data, there in (wide_shards, 'no conditions'), (sequences, r'sequences \[5, 1\]'):
        with pytest.raises(ValueError, match=f'network.name={name} with data.conditional=continuous takes a vector with each '
                           f'picture, and .* has {there}; pack a vector for each by imago pack --conditions FILE, or set'):
            prepare(config_of(name, data, tmp_path / 'run', 1, **CONTINUOUS))
    assert not (tmp_path / 'run').exists()


def test_sequences_do_not_disturb_networks_that_take_no_conditions(tmp_path):
    sequences = pack(tmp_path / 'data', VALUES.reshape(30, 5, 1))
    end = train_here(config_of('r3gan', sequences, tmp_path / 'run', 1, data={}, total_kimg=0.012))
    assert end['nimg'] == 12


@pytest.mark.parametrize('text', ['', 'AAAA', 'no base64', 'AADAfw=='])
def test_conditions_of_an_export_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError):
        from_text(text, 1)
