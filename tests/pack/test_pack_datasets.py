"""`imago pack` reads datasets as people have them: CIFAR's and MNIST's files, Parquet, splits, and HEIC."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from packs_for_tests import folder_of, manifest_of, noise, run, samples, save
from PIL import Image, ImageOps

from imago.trainer.pack import heif, parquet
from imago.trainer.pack.pickles import unpickle
from imago.trainer.pack.sources import list_source

CLASSES = ['cat', 'dog', 'owl']


def pixels(seed: int, count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'png')
    return file.getvalue()


def packed(source: Path, out: Path, *options: object) -> dict[bytes, str]:
    """Pack it without loss. Returns {values of a picture: its class}, and checks that each member is accounted for."""
    assert run(source, out, '--encoding', 'png', *options) == 0
    names, report = manifest_of(out).class_names, json.loads((out / 'report.json').read_text())
    assert report['members'] == report['pictures'] + len(report['skipped']) + sum(report['ignored'].values())
    return {sample['png'].tobytes(): names[sample['cls']] if names else '' for sample in samples(out)}


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert run(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('imago pack: error: ') and len(error) < 1500
    return error


# CIFAR

def cifar(root: Path, version: str, fine: bool, protocol: int = 2) -> dict[str, dict[bytes, str]]:
    """Write an archive and the folder in it. Returns {split: {values: class}}."""
    truth, files = {}, {}
    names = [f'{name}{number}' for number in range(2) for name in CLASSES]
    splits = {'data_batch_1': 'train', 'data_batch_2': 'train', 'test_batch': 'test'}
    splits = {'train': 'train', 'test': 'test'} if fine else splits
    for seed, (batch, split) in enumerate(splits.items()):
        values, labels = pixels(seed, 7, 32, 32, 3), [number % 6 for number in range(7)]
        truth.setdefault(split, {}).update({value.tobytes(): names[label] for value, label in zip(values, labels)})
        planes = values.transpose(0, 3, 1, 2).reshape(7, 3072)
        if version == 'python':
            key = b'fine_labels' if fine else b'labels'
            content = {b'data': planes, key: labels, b'coarse_labels': [0] * 7, b'filenames': [b'x']}
            files[batch] = pickle.dumps(content, protocol)
        else:
            rows = [bytes([9] * fine + [label]) + plane.tobytes() for label, plane in zip(labels, planes)]
            files[f'{batch}.bin'] = b''.join(rows)
    meta = ('meta' if fine else 'batches.meta') if version == 'python' else 'fine_label_names.txt' if fine else 'batches.meta.txt'
    files[meta] = '\n'.join(names).encode() + b'\n\n' if version == 'binary' else pickle.dumps(
        {b'fine_label_names' if fine else b'label_names': [name.encode() for name in names]}, protocol)
    files['readme.html'] = b'x'
    folder = root / 'cifar-batches'
    folder.mkdir(parents=True)
    with tarfile.open(root / 'cifar.tar.gz', 'w:gz') as tar:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        tar.add(folder, folder.name)
    return truth


@pytest.mark.parametrize('version, fine', [('python', False), ('python', True), ('binary', False), ('binary', True)])
def test_cifar(tmp_path, capsys, version, fine):
    truth = cifar(tmp_path, version, fine)
    assert packed(tmp_path / 'cifar.tar.gz', tmp_path / 'a') == truth['train']
    output = capsys.readouterr()
    assert 'the split train is packed, of train' in output.err and '7 pictures of other splits' in output.out
    assert packed(tmp_path / 'cifar-batches', tmp_path / 'b', '--split', 'test') == truth['test']
    assert {path.name for path in (tmp_path / 'a').iterdir()} == {'dataset.json', 'report.json', 'shard-00000.tar'}
    assert packed(tmp_path / 'cifar-batches', tmp_path / 'c', '--split', 'all', '--no-labels') == dict.fromkeys(
        truth['train'] | truth['test'], '')


def test_cifar_pickled_in_a_newer_protocol(tmp_path):
    truth = cifar(tmp_path, 'python', False, 4)
    assert packed(tmp_path / 'cifar.tar.gz', tmp_path / 'out') == truth['train']


class Evil:
    def __init__(self, function: object, *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


LAUGH = b'\x80\x02})' + b'2\x86' * 60   # tuples in tuples, whose text and whose hash would take 2**60 steps


def hostile(path: Path) -> list[bytes]:
    dtype = b'cnumpy\ndtype\n'
    return [
        pickle.dumps({b'data': Evil(open, str(path), 'w')}),
        pickle.dumps({b'data': Evil(eval, f'open({str(path)!r}, "w")')}),
        pickle.dumps({b'data': Evil(getattr, 'x', 'save')}), pickle.dumps({b'data': np.array([object()])}),
        pickle.dumps({b'data': np.array([1.5])}), pickle.dumps({b'data': pixels(0, 2, 3)}, 5),
        pickle.dumps([1]), b'', b'\x80', b'.',
        LAUGH + b'K\x01s.', b'\x80\x02}X\x04\x00\x00\x00data' + LAUGH[3:] + b's',
        b'\x80\x02' + dtype + b'(' + LAUGH[3:] + b'tR.',
        b'\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x0e.',   # it claims 2**60 bytes
        b'\x80\x02}c_codecs\nencode\nq\x01N}X\x07\x00\x00\x00__new__K\x01s\x86b0.',      # would change what stands for a call
        b'\x80\x02}cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85NNC\x01xtbs.', b'(' * 100_000, b']' * 100_000 + b'.']


def test_a_hostile_pickle_only_raises(tmp_path, capsys):
    attacks = hostile(tmp_path / 'written')
    for data in attacks:
        with pytest.raises(ValueError, match='no pickle of plain data'):
            unpickle(data)
    cifar(tmp_path, 'python', False)
    (tmp_path / 'cifar-batches' / 'data_batch_1').write_bytes(attacks[0])
    assert 'no whole CIFAR' in refusal(capsys, tmp_path / 'cifar-batches', tmp_path / 'out')
    assert not (tmp_path / 'written').exists() and not (tmp_path / 'out').exists()
    assert unpickle(b'\x80\x02}r\xff\xff\xff\x7f.') == {}, 'the one in C makes room for 2**32 objects'
    assert unpickle(pickle.dumps({b'a': [1, (b'x', 'ü', None, 2.0 > 1)]}, 2)) == {'a': [1, (b'x', 'ü', None, True)]}


def test_damaged_pickles_end_in_one_kind_of_error(tmp_path):
    whole, refused = pickle.dumps({b'data': pixels(0, 2, 30), b'labels': [1, 2], b'x': 'text'}, 2), 0
    rng = np.random.default_rng(0)
    for _ in range(3000):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            unpickle(bytes(data))
        except ValueError:
            refused += 1
    assert 500 < refused < 3000


def test_other_archives_and_damaged_ones_are_refused(tmp_path, capsys):
    save(noise(0), tmp_path / 'a.png')
    with tarfile.open(tmp_path / 'x.tgz', 'w:gz') as tar:
        tar.add(tmp_path / 'a.png', 'a.png')
    assert 'tar -xzf x.tgz' in refusal(capsys, tmp_path / 'x.tgz', tmp_path / 'out')
    cifar(tmp_path, 'binary', True)
    whole = (tmp_path / 'cifar.tar.gz').read_bytes()
    (tmp_path / 'cifar.tar.gz').write_bytes(whole[:len(whole) // 2])
    assert 'cifar.tar.gz' in refusal(capsys, tmp_path / 'cifar.tar.gz', tmp_path / 'out')
    (tmp_path / 'cifar-batches' / 'train.bin').write_bytes(b'x' * 5000)
    assert 'no multiple of 3074' in refusal(capsys, tmp_path / 'cifar-batches', tmp_path / 'out')


# MNIST

def mnist(folder: Path, name: str, count: int, seed: int, opened: object = gzip.open, suffix: str = '.gz') -> dict[bytes, str]:
    values, labels = pixels(seed, count, 28, 28), [number % 3 for number in range(count)]
    folder.mkdir(exist_ok=True)
    for kind, data in (('images-idx3', np.array([0x803, count, 28, 28], '>u4').tobytes() + values.tobytes()),
                       ('labels-idx1', np.array([0x801, count], '>u4').tobytes() + bytes(labels))):
        with opened(folder / f'{name}-{kind}-ubyte{suffix}', 'wb') as file:
            file.write(data)
    return {np.repeat(value[..., None], 3, 2).tobytes(): str(label) for value, label in zip(values, labels)}


def test_mnist(tmp_path):
    truth = {'train': mnist(tmp_path / 'm', 'train', 6, 0), 'test': mnist(tmp_path / 'm', 't10k', 6, 1)}
    assert mnist(tmp_path / 'm', 'train', 6, 0, open, '') == truth['train']      # unpacked beside, as torchvision has it
    assert packed(tmp_path / 'm', tmp_path / 'a', '--channels', 1) == truth['train']
    assert packed(tmp_path / 'm' / 't10k-images-idx3-ubyte.gz', tmp_path / 'b', '--channels', 1) == truth['test']
    (tmp_path / 'm' / 't10k-labels-idx1-ubyte.gz').unlink()
    assert packed(tmp_path / 'm', tmp_path / 'c', '--channels', 1, '--split', 'test') == dict.fromkeys(truth['test'], '')


@pytest.mark.parametrize('data, word', [
    (np.array([0x803, 2, 4, 4], '>u4').tobytes() + bytes(31), 'fewer'),
    (np.array([0x803, 2, 4, 4], '>u4').tobytes() + bytes(33), 'more'),
    (np.array([0x803, 2**31, 2**31, 4], '>u4').tobytes(), 'claims'), (np.array([0x803, 0, 4, 4], '>u4').tobytes(), 'claims'),
    (b'\0\0\x08\x01', 'begin'), (b'', 'begin'), (np.array([0x802, 2, 4, 4], '>u4').tobytes() + bytes(32), 'begin')], ids=range(7))
def test_malformed_idx_is_refused(tmp_path, capsys, data, word):
    source = tmp_path / 'in'
    source.mkdir()
    (source / 'train-images-idx3-ubyte').write_bytes(data)
    assert word in refusal(capsys, source, tmp_path / 'out')
    (source / 'train-images-idx3-ubyte').unlink()
    (source / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(data)[:-9])
    assert 'train-images-idx3-ubyte.gz' in refusal(capsys, source, tmp_path / 'out')


def test_labels_of_another_number_and_several_sets_are_refused(tmp_path, capsys):
    mnist(tmp_path / 'm', 'train', 6, 0)
    mnist(tmp_path / 'other', 'train', 5, 0)
    (tmp_path / 'other' / 'train-labels-idx1-ubyte.gz').replace(tmp_path / 'm' / 'train-labels-idx1-ubyte.gz')
    assert '6 pictures, and train-labels-idx1-ubyte.gz 5 labels' in refusal(capsys, tmp_path / 'm', tmp_path / 'out')
    mnist(tmp_path / 'e', 'emnist-letters-train', 3, 0)
    mnist(tmp_path / 'e', 'emnist-digits-train', 3, 1)
    assert 'several sets' in refusal(capsys, tmp_path / 'e', tmp_path / 'out')
    assert len(packed(tmp_path / 'e' / 'emnist-digits-train-images-idx3-ubyte.gz', tmp_path / 'out')) == 3


# Parquet

def feature(**features: dict) -> dict[bytes, bytes]:
    return {b'huggingface': json.dumps({'info': {'features': features}}).encode()}


IMAGE, CLASS = {'_type': 'Image'}, {'names': CLASSES, '_type': 'ClassLabel'}


def rows(path: Path, seed: int, count: int, columns: dict | None = None, metadata: dict | None = None) -> dict[bytes, str]:
    values, labels = pixels(seed, count, 16, 16, 3), [number % 3 for number in range(count)]
    table = pyarrow.table({'image': [{'bytes': png(value), 'path': f'{i}.png'} for i, value in enumerate(values)]}
                          | ({'label': labels} if columns is None else columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return {value.tobytes(): CLASSES[label] for value, label in zip(values, labels)}


def test_parquet_of_hugging_face(tmp_path, capsys):
    about = feature(image=IMAGE, label=CLASS)
    truth = rows(tmp_path / 'hub/data/train-00000-of-00002.parquet', 0, 10, metadata=about)
    truth |= rows(tmp_path / 'hub/data/train-00001-of-00002.parquet', 1, 7, metadata=about)
    test = rows(tmp_path / 'hub/data/test-00000-of-00001.parquet', 2, 5, metadata=about)
    (tmp_path / 'hub/README.md').write_text('x')
    assert packed(tmp_path / 'hub', tmp_path / 'a') == truth
    output = capsys.readouterr()
    assert 'of train 17, test 5' in output.err and 'left out' not in output.err
    assert '\nclasses   cat 7, dog 5, owl 5\n' in output.out
    assert packed(tmp_path / 'hub/data/test-00000-of-00001.parquet', tmp_path / 'b') == test
    assert packed(f'{tmp_path}/hub/data/train-{{00000..00001}}-of-00002.parquet', tmp_path / 'c') == truth
    assert packed(tmp_path / 'hub', tmp_path / 'd', '--workers', 1) == truth
    assert {path.name: path.read_bytes() for path in (tmp_path / 'a').iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / 'd').iterdir()}, 'the copies are gone, and workers change nothing'
    picture = list_source(str(tmp_path / 'hub')).pictures[5]
    with picture.open(1 << 20) as file:
        assert np.asarray(Image.open(file)).tobytes() == pixels(0, 10, 16, 16, 3)[5].tobytes()


@pytest.mark.parametrize('columns, metadata, options, classes', [
    ({'label': ['x', 'y', 'x', 'y']}, None, [], ('x', 'y')), ({'Class Name': ['x', 'y', 'x', 'y']}, None, [], ('x', 'y')),
    ({'label': [0, 1, 0, 1]}, None, [], ('0', '1')), ({'text': ['a', 'b', 'c', 'd']}, None, [], ()),
    ({'fine': [0, 1, 0, 1], 'coarse': [0, 0, 1, 1]}, feature(image=IMAGE, fine=CLASS, coarse=CLASS),
     ['--columns', 'image,coarse'], tuple(CLASSES)),
    ({'fine': [0, 1, 0, 1], 'coarse': [0, 0, 1, 1]}, feature(image=IMAGE, fine=CLASS, coarse=CLASS), ['--no-labels'], ()),
    ({'mask': [b'', b'', b'', b''], 'label': [0, 1, 1, 0]}, feature(image=IMAGE), [], ('0', '1'))])
def test_columns_of_parquet(tmp_path, columns, metadata, options, classes):
    rows(tmp_path / 'x.parquet', 0, 4, columns, metadata)
    assert len(packed(tmp_path / 'x.parquet', tmp_path / 'out', *options)) == 4
    assert manifest_of(tmp_path / 'out').class_names == classes


@pytest.mark.parametrize('columns, options, word', [
    ({'label': [0, 1], 'class': [0, 1]}, [], 'label, class; say which by --columns'), ({'mask': [b'', b'']}, [], 'image, mask'),
    ({'label': [0.5, 1.0]}, [], 'scale'), ({'label': [0, None]}, [], 'no label'),
    ({'label': [0, 1]}, ['--columns', 'label,image'], 'bytes'),
    ({'label': [0, 1]}, ['--columns', 'image,other'], 'header is image, label'), ({'label': [-1, -1]}, [], '--labels'),
    ({'label': [0, 1]}, ['--split', 'train'], 'leave --split out')])
def test_parquet_that_is_not_plain_is_refused(tmp_path, capsys, columns, options, word):
    rows(tmp_path / 'x.parquet', 0, 2, columns)
    error = refusal(capsys, tmp_path / 'x.parquet', tmp_path / 'out', *options)
    assert word in error or word == '--labels' and 'outside 0' in error


def test_parquet_without_pictures_damaged_or_mixed_is_refused(tmp_path, capsys):
    rows(tmp_path / 'in/x.parquet', 0, 2)
    pyarrow.parquet.write_table(pyarrow.table({'a': [1]}), tmp_path / 'in/y.parquet')
    assert 'no column of pictures' in refusal(capsys, tmp_path / 'in', tmp_path / 'out')
    rows(tmp_path / 'in/y.parquet', 0, 2, metadata=feature(image=IMAGE, label=CLASS))
    assert 'give the files of one dataset' in refusal(capsys, tmp_path / 'in', tmp_path / 'out')
    whole = (tmp_path / 'in/x.parquet').read_bytes()
    (tmp_path / 'in/y.parquet').unlink()
    for data in (b'', b'PAR1', whole[:-9]):
        (tmp_path / 'in/x.parquet').write_bytes(data)
        assert 'x.parquet' in refusal(capsys, tmp_path / 'in', tmp_path / 'out')
        assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


def test_rows_without_a_picture_are_skipped_and_told(tmp_path):
    pictures = [{'bytes': png(pixels(i, 1, 16, 16, 3)[0]) if i else None, 'path': 'x.png'} for i in range(3)]
    pyarrow.parquet.write_table(pyarrow.table({'image': pictures}), tmp_path / 'x.parquet')
    assert len(packed(tmp_path / 'x.parquet', tmp_path / 'out')) == 2
    skipped, = json.loads((tmp_path / 'out/report.json').read_text())['skipped']
    assert skipped['name'] == 'x.parquet/0000000'


def test_memory_stays_bounded_by_pages_of_a_large_group(tmp_path):
    """pandas writes all rows as one group."""
    data = [{'bytes': np.random.default_rng(i).bytes(20_000)} for i in range(3000)]
    pyarrow.parquet.write_table(pyarrow.table({'image': data}), tmp_path / 'x.parquet', row_group_size=3000, write_batch_size=64,
                                use_dictionary=False, compression='none')
    pictures = list_source(str(tmp_path / 'x.parquet')).pictures
    before, peak = pyarrow.total_allocated_bytes(), 0
    count = 0
    for _ in parquet._pictures(str(tmp_path / 'x.parquet'), {p.number: p for p in pictures}):
        count += 1
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert count == 3000 and peak < 15e6, 'of 60 MB'


def test_pictures_go_before_parquet_files_beside_them(tmp_path, capsys):
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    rows(tmp_path / 'in/metadata.parquet', 0, 2)
    assert len(packed(tmp_path / 'in', tmp_path / 'out')) == 2
    assert 'left out: metadata.parquet' in capsys.readouterr().err


def test_without_pyarrow(tmp_path, capsys, monkeypatch):
    rows(tmp_path / 'x.parquet', 0, 2)
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    assert 'pip install pyarrow' in refusal(capsys, tmp_path / 'x.parquet', tmp_path / 'out')


# splits and metadata files

@pytest.mark.parametrize('names, options, kept', [
    (['train/cat/0.png', 'train/dog/1.png', 'test/cat/2.png'], [], {0: 'cat', 1: 'dog'}),
    (['train/cat/0.png', 'train/dog/1.png', 'Val/cat/2.png'], ['--split', 'validation'], {2: ''}),
    (['in/train/cat/0.png', 'in/valid/cat/1.png', 'in/test/dog/2.png'], ['--split', 'all'],
     {0: 'cat', 1: 'cat', 2: 'dog'}),
    (['cup/train/good/0.png', 'pen/train/good/1.png', 'cup/test/bad/2.png'], [], {0: 'cup', 1: 'pen'}),
    (['train/0.png', 'bus/1.png'], [], {0: 'train', 1: 'bus'}),
    (['train/0.png', 'train/1.png'], ['--split', 'train'], {0: '', 1: ''})])
def test_splits_of_folders(tmp_path, names, options, kept):
    source = folder_of(tmp_path / 'source', names)
    found = packed(source, tmp_path / 'out', *options)
    assert found == {noise(seed).tobytes(): name for seed, name in kept.items()}


def test_a_split_that_is_not_there_is_refused(tmp_path, capsys):
    source = folder_of(tmp_path / 'in', ['test/0.png', 'val/1.png'])
    assert 'its splits are: validation 1, test 1' in refusal(capsys, source, tmp_path / 'out')
    assert 'leave --split out' in refusal(capsys, folder_of(tmp_path / 'b', ['0.png']), tmp_path / 'out', '--split', 'test')


@pytest.mark.parametrize('name, text, classes', [
    ('metadata.csv', 'file_name,text,label\n0.png,"a, b",red\nsub/1.png,c,blue\n', ('blue', 'red')),
    ('metadata.jsonl', '{"file_name": "0.png", "label": 1}\n\n{"file_name": "sub/1.png", "label": 0, "x": []}\n', ('0', '1')),
    ('metadata.csv', 'file_name,text\n0.png,a\nsub/1.png,b\n', ())])
def test_metadata_of_imagefolder(tmp_path, name, text, classes):
    for split in ('train', 'test'):
        folder_of(tmp_path / 'in' / split, ['0.png', 'sub/1.png'])
        (tmp_path / 'in' / split / name).write_text(text)
    assert len(packed(tmp_path / 'in', tmp_path / 'out')) == 2 and manifest_of(tmp_path / 'out').class_names == classes


def test_metadata_of_the_whole_tree(tmp_path):
    folder_of(tmp_path / 'in', ['train/0.png', 'train/1.png', 'test/0.png'])
    (tmp_path / 'in/metadata.csv').write_text('file_name,label\ntrain/0.png,a\ntrain/1.png,b\ntest/0.png,b\n')
    assert set(packed(tmp_path / 'in', tmp_path / 'out').values()) == {'a', 'b'}
    (tmp_path / 'in/metadata.csv').write_text('file_name,label\ntrain/0.png,a\n')
    assert run(tmp_path / 'in', tmp_path / 'other') == 2


# HEIC

@pytest.fixture
def phone(tmp_path):
    """A photograph that was taken with the phone turned; what it shows upright."""
    upright = Image.fromarray(np.kron(np.arange(24).reshape(4, 6)[..., None] * [10, 5, 2], np.ones((16, 16, 1))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.register()
    (tmp_path / 'in').mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'in/IMG_1.HEIC', exif=exif.tobytes(), quality=95)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'in/renamed.jpg', 'HEIF', exif=exif.tobytes(), quality=95)
    return tmp_path / 'in', upright


def test_heic_comes_upright(phone, tmp_path):
    source, upright = phone
    assert ImageOps.exif_transpose(upright).size == (96, 64)
    for options in ([], ['--resolution', '64x96']):
        for shown in packed(source, tmp_path / 'out', '--overwrite', *options):
            shown = np.frombuffer(shown, np.uint8).reshape(64, 96, 3).astype(int)
            assert np.abs(shown - np.asarray(upright)).mean() < 4
    assert manifest_of(tmp_path / 'out').num_samples == 2


def test_without_the_extra_heic_is_named(phone, tmp_path, capsys, monkeypatch):
    source, _ = phone
    monkeypatch.setattr(heif, 'is_installed', lambda: False)
    save(noise(0, 64, 96), source / 'b.png')
    assert run(source, tmp_path / 'out') == 0
    output = capsys.readouterr()
    assert "1 HEIF pictures are left out: IMG_1.HEIC; pip install pillow-heif" in output.err and '1 .heic' in output.out
    for name in ('b.png', 'renamed.jpg'):
        (source / name).unlink()
    assert 'pip install pillow-heif' in refusal(capsys, source, tmp_path / 'other')


def test_broken_heic_is_skipped(phone, tmp_path):
    source, _ = phone
    data = (source / 'IMG_1.HEIC').read_bytes()
    (source / 'cut.heic').write_bytes(data[:len(data) // 2])
    (source / 'zeros.heic').write_bytes(data[:40] + bytes(len(data) - 40))
    assert len(packed(source, tmp_path / 'out', '--resolution', '64x96')) == 1
    assert len(json.loads((tmp_path / 'out/report.json').read_text())['skipped']) == 2
