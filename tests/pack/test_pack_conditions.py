"""Floats that are packed with the pictures."""

import json
import tarfile
import zlib

import numpy as np
import pytest
from packs_for_tests import folder_of, manifest_of, noise, run, samples

from imago.trainer.data.shards import SampleReader, open_dataset
from imago.trainer.data.stream import stream

NAMES = [f'x/{number}.png' for number in range(4)] + [f'y/{number}.png' for number in range(3)]
VALUES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp('source'), NAMES)


def pack(source, out, values, *options):
    return run(source, out, '--conditions', values, '--encoding', 'png', *options)


def write(folder, kind, values=VALUES):
    path = folder / f'values.{kind}'
    if kind == 'npy':
        np.save(path, values)
    elif kind == 'csv':
        path.write_text('path,v\n' + ''.join(f'{name},{",".join(map(repr, row.tolist()))}\n' for name, row in zip(NAMES, values)))
    else:
        path.write_text(json.dumps({name: row.tolist() for name, row in zip(reversed(NAMES), reversed(values))}))
    return path


def conditions_of(out) -> dict[str, np.ndarray]:
    """Read without our code: name of the picture -> its condition."""
    pictures = {noise(seed).tobytes(): name for seed, name in enumerate(NAMES)}
    return {pictures[sample['png'].tobytes()]: sample['npy'] for sample in samples(out)}


@pytest.mark.parametrize('kind', ['npy', 'csv', 'json'])
def test_each_picture_has_its_own_values(source, tmp_path, kind, capsys):
    assert pack(source, tmp_path / 'out', write(tmp_path, kind)) == 0
    assert manifest_of(tmp_path / 'out').condition_shape == (3,) and manifest_of(tmp_path / 'out').class_names == ('x', 'y')
    found = conditions_of(tmp_path / 'out')
    assert sorted(found) == NAMES
    for name, values in zip(NAMES, VALUES):
        assert found[name].dtype == np.float32 and np.array_equal(found[name], values)
    assert '2 classes, conditions of 3 values' in capsys.readouterr().out


def test_sequences_are_streamed_beside_their_pictures(source, tmp_path):
    values = np.arange(7 * 2 * 3).reshape(7, 2, 3)
    assert pack(source, tmp_path / 'out', write(tmp_path, 'npy', values)) == 0
    pictures = {noise(seed).tobytes(): row for seed, row in enumerate(values)}
    dataset = open_dataset(tmp_path / 'out')
    assert dataset.manifest.condition_shape == (2, 3)
    settings = dict(lanes=2, seed=1, nimg=0, resolution=(24, 24), flip=False, workers=0, batch=6)
    whole = next(stream(dataset, rank=0, world=1, **settings))
    assert whole.conditions.shape == (6, 2, 3) and str(whole.conditions.dtype) == 'torch.float32'
    for picture, condition in zip(whole.pictures['image'], whole.conditions):
        assert np.array_equal(condition, pictures[picture.permute(1, 2, 0).numpy().tobytes()])
    parts = [next(stream(dataset, rank=rank, world=2, **settings)).conditions for rank in (0, 1)]
    assert parts[0].tolist() + parts[1].tolist() == whole.conditions.tolist() == whole.to('cpu').conditions.tolist()


def test_the_checksum_is_of_the_condition_too(source, tmp_path):
    assert pack(source, tmp_path / 'out', write(tmp_path, 'npy')) == 0
    path = tmp_path / 'out' / 'shard-00000.tar'
    with tarfile.open(path) as tar:
        parts = [tar.extractfile(f'000000002.{part}').read() for part in ('png', 'cls', 'npy')]
        assert tar.extractfile('__checksums__').read().decode().splitlines()[2] == f'000000002 {zlib.crc32(b"".join(parts)):08x}'
        place = tar.getmember('000000002.npy').offset_data
    content = path.read_bytes()
    for there in (place + 3, place + 131):      # in its head, and in a value
        path.write_bytes(content[:there] + bytes([content[there] ^ 1]) + content[there + 1:])
        sample, damaged = SampleReader(open_dataset(tmp_path / 'out'), (24, 24), 1).read(0, 2)
        assert sample.key == '000000003' and 'CRC-32' in damaged[0]


def test_manifests_without_conditions_do_not_speak_of_them(source, tmp_path):
    assert run(source, tmp_path / 'out') == 0
    assert 'condition' not in (tmp_path / 'out' / 'dataset.json').read_text()
    dataset = open_dataset(tmp_path / 'out')
    batch = next(stream(dataset, lanes=1, seed=0, nimg=0, rank=0, world=1, resolution=(24, 24), flip=False, workers=0, batch=1))
    assert batch.conditions is None and batch.to('cpu').conditions is None


def not_finite(folder):
    values = VALUES.copy()
    values[5, 1] = np.nan
    return write(folder, 'npy', values)


def text(kind, content):
    def make(folder):
        (folder / f'values.{kind}').write_text(content)
        return folder / f'values.{kind}'
    return make


def pickled(folder):
    np.save(folder / 'values.npy', np.array([{}] * 7, dtype=object))
    return folder / 'values.npy'


def promising(folder):
    path = write(folder, 'npy')
    path.write_bytes(path.read_bytes().replace(b'(7, 3)', b'(7, 9)'))
    return path


ROWS = {name: [1.0, 2.0] for name in NAMES}


@pytest.mark.parametrize('make, message', [
    (lambda folder: folder / 'none.npy', 'does not exist'),
    (text('txt', ''), 'is no .npy, .csv or .json'),
    (not_finite, "that no float32 holds, or none, for 1 pictures: y/1.png"),
    (lambda folder: write(folder, 'npy', VALUES.astype(np.float64) * 1e39), 'that no float32 holds'),
    (lambda folder: write(folder, 'npy', VALUES[:6]), "has 6 rows, and SOURCE 7 pictures; .* 'x/0.png' is the first"),
    (lambda folder: write(folder, 'npy', VALUES[:, 0]), r'holds float32 \[7\], where numbers'),
    (lambda folder: write(folder, 'npy', VALUES[:, :0]), r'holds float32 \[7, 0\], where numbers'),
    (lambda folder: write(folder, 'npy', VALUES.astype(str)), r'holds <U\d+ \[7, 3\], where numbers'),
    (pickled, 'cannot be read'), (promising, 'cannot be read'), (text('npy', 'no array'), 'cannot be read'),
    (text('csv', 'x/0.png,1\nx/1.png,one\n'), "line 2: could not convert string to float: 'one'"),
    (text('csv', 'x/0.png,1\nx/0.png,1\n'), "'x/0.png' has two conditions"),
    (text('csv', ''.join(f'{name},1\n' for name in NAMES[:5])), 'has none for 2 pictures: y/1.png, y/2.png'),
    (text('json', json.dumps(ROWS | {'z.png': [1, 2]})), 'some for 1 paths that are no picture in SOURCE: z.png'),
    (text('json', json.dumps(ROWS | {'y/2.png': [1]})), r"that of 'x/0.png' is \[2\], that of 'y/2.png' \[1\]"),
    (text('json', json.dumps(ROWS | {'y/2.png': [[1], [2, 3]]})), "'y/2.png' is ragged"),
    (text('json', json.dumps(ROWS | {'y/2.png': 3})), "the condition of 'y/2.png' is no list of numbers"),
    (text('json', '[1]'), 'it is no object path'),
])
def test_files_that_do_not_fit_are_refused(source, tmp_path, make, message, capsys):
    assert pack(source, tmp_path / 'out', make(tmp_path)) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and not (tmp_path / 'out').exists()
    with pytest.raises(ValueError, match=message):
        raise ValueError(told)
