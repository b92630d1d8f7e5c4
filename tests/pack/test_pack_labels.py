"""`imago pack`: the same content has the same classes in a folder, a zip and a tar, and what is no class is refused."""

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from packs_for_tests import manifest_of, noise, run, samples

from imago.trainer.pack.labels import number_classes
from imago.trainer.pack.sources import list_source


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed, 8, 8).save(file, 'png')
    return file.getvalue()


def write(root: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The same files as a folder, a zip, a zip as some Windows tools write it, or a tar."""
    if kind == 'folder':
        for name, data in files.items():
            (root / 'folder' / name).parent.mkdir(parents=True, exist_ok=True)
            (root / 'folder' / name).write_bytes(data)
        return root / 'folder'
    path = root / f'x.{kind[-3:]}'
    if kind == 'tar':
        with tarfile.open(path, 'w') as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f'./{name}')
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in files.items():
                info = zipfile.ZipInfo()
                info.filename = name.replace('/', '\\') if kind == 'windows zip' else name
                archive.writestr(info, data)
    return path


KINDS = ['folder', 'zip', 'windows zip', 'tar']
THREE = {f'{name}/{i}.png': f'{name}/{i}'.encode() for name in ('cat', 'dog', 'owl') for i in range(2)}
PLAIN = {f'{i}.png': str(i).encode() for i in range(4)}


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {folder + name: data for name, data in files.items()}


def stylegan(labels: object) -> dict[str, bytes]:
    stored = {f'0000{i // 2}/img{i}.png': str(i).encode() for i in range(4)}
    return stored | {'dataset.json': json.dumps({'labels': labels}).encode()}


PAIRS = [[f'0000{i // 2}/img{i}.png', i % 2] for i in range(4)]
CONTENTS = {  # files -> (class names, class of each picture by its content)
    'class folders': (THREE, {data: name.split('/')[0] for name, data in THREE.items()}),
    'one level too high': (below('train/', THREE), {data: name.split('/')[0] for name, data in THREE.items()}),
    'two levels too high': (below('a/train/', THREE), {data: name.split('/')[0] for name, data in THREE.items()}),
    'folders in class folders': ({name.replace('/', '/deep/'): data for name, data in THREE.items()},
                                 {data: name.split('/')[0] for name, data in THREE.items()}),
    'a single folder': (below('cat/', PLAIN), {}), 'no folder': (PLAIN, {}),
    'loose pictures': (THREE | PLAIN, {}), 'loose pictures below': (below('train/', THREE | PLAIN), {}),
    'StyleGAN': (stylegan(PAIRS), {str(i).encode(): str(i % 2) for i in range(4)}),
    'StyleGAN in a folder': (below('ffhq/', stylegan(PAIRS)), {str(i).encode(): str(i % 2) for i in range(4)}),
    'StyleGAN with backslashes': (stylegan([[name.replace('/', '\\'), label] for name, label in PAIRS]),
                                  {str(i).encode(): str(i % 2) for i in range(4)}),
    'StyleGAN without labels': (stylegan(None), {}),
    'StyleGAN with names': (stylegan([[name, f'c{label}'] for name, label in PAIRS]),
                            {str(i).encode(): f'c{i % 2}' for i in range(4)}),
    'another dataset.json': (THREE | {'dataset.json': b'{"labels": "elsewhere"}'},
                             {data: name.split('/')[0] for name, data in THREE.items()}),
    'labels beside': (PLAIN | {f'{i}.cls': b'%d\n' % (i % 2) for i in range(4)},
                      {str(i).encode(): str(i % 2) for i in range(4)}),
    'labels before': ({f'{i}.json': b'{"label": "c%d"}' % (i % 2) for i in range(4)} | PLAIN,
                      {str(i).encode(): f'c{i % 2}' for i in range(4)}),
    'labels in any order': (dict(random.Random(0).sample(
        sorted((PLAIN | {f'{i}.CLS': b'%d' % (i % 2) for i in range(4)}).items()), 8)),
        {str(i).encode(): str(i % 2) for i in range(4)}),
    'labels of dotted names': ({f't{i}.{j}.png': f'{i}{j}'.encode() for i in range(2) for j in range(2)}
                               | {'t0.cls': b'0', 't1.cls': b'1', 't1.1.cls': b'0'},
                               {b'00': '0', b'01': '0', b'10': '1', b'11': '0'}),
    'descriptions without labels': (THREE | {name.replace('png', 'json'): b'{"caption": "x"}' for name in THREE},
                                    {data: name.split('/')[0] for name, data in THREE.items()}),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('content', CONTENTS)
def test_the_same_content_has_the_same_classes(tmp_path, kind, content):
    files, expected = CONTENTS[content]
    listing = list_source(str(write(tmp_path, kind, files)))
    names, numbers = number_classes(listing.labels, [picture.name for picture in listing.pictures], numeric=listing.numeric)
    found = {picture.open(1 << 20).read(): names[number]
             for picture, number in zip(listing.pictures, numbers) if number is not None}
    assert found == expected and names == tuple(sorted(set(expected.values())))
    assert len(listing.pictures) == sum(name.endswith('png') for name in files)


@pytest.mark.parametrize('seed', range(40))
def test_any_tree_has_the_same_classes_in_each_kind(tmp_path, seed):
    rng = random.Random(seed)
    top = rng.choice(['', '', 'top/', 'a/b/'])
    names = {top + rng.choice(['', 'cat/', 'dog/', 'dog/deep/', 'cat/deep/']) * rng.randrange(2) + f'{i}.png' for i in range(6)}
    if rng.random() < 0.5:
        names = {name for name in names if name.count('/') > top.count('/')} or names
    files = {name: str(number).encode() for number, name in enumerate(sorted(names))}
    found = []
    for kind in KINDS:
        listing = list_source(str(write(tmp_path, kind, files)))
        found.append({picture.open(1 << 20).read(): label for picture, label in zip(listing.pictures, listing.labels)})
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize('kind', KINDS)
def test_labels_are_packed_and_told(tmp_path, capsys, kind):
    """The labels are in StyleGAN's file, where folders are only storage and no classes."""
    files = stylegan(PAIRS) | {name: png(i) for i, (name, _) in enumerate(PAIRS)}
    assert run(write(tmp_path, kind, files), tmp_path / 'out', '--encoding', 'png') == 0
    assert '\nclasses   0 2, 1 2\n' in capsys.readouterr().out
    assert {sample['png'].tobytes(): sample['cls'] for sample in samples(tmp_path / 'out')} == {
        noise(i, 8, 8).tobytes(): i % 2 for i in range(4)}
    assert run(write(tmp_path, kind, files), tmp_path / 'none', '--no-labels') == 0
    assert manifest_of(tmp_path / 'none').class_names == ()


@pytest.mark.parametrize('text, classes', [
    (json.dumps({'labels': PAIRS}), ('0', '1')), ('{"labels": null}', ()),
    (json.dumps(dict(PAIRS)), ('0', '1')), (json.dumps({name.replace('/', '\\'): 'x' for name, _ in PAIRS}), ('x',))])
def test_labels_files_of_json(tmp_path, text, classes):
    source = write(tmp_path, 'folder', {name: png(i) for i, (name, _) in enumerate(PAIRS)})
    (tmp_path / 'l.json').write_text(text)
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.json') == 0
    assert manifest_of(tmp_path / 'out').class_names == classes


def test_backslashes_in_a_csv(tmp_path):
    source = write(tmp_path, 'folder', {name: png(i) for i, name in enumerate(THREE)})
    (tmp_path / 'l.csv').write_text('path,label\n' + ''.join(f'{name},{name[:3]}\n'.replace('/', '\\') for name in THREE))
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.csv') == 0
    assert manifest_of(tmp_path / 'out').class_counts == (2, 2, 2)


CSV = [
    ('0.31', '0.77', 'scale'), ('1', '2.5', 'scale'), ('-1e-3', '3', 'scale'), ('blue;round', 'red', 'several'),
    ('a|b', 'c', 'several'), ('', 'x', 'empty'), ('1', '99999999999999999999999', 'outside'), ('0', 'b' * 5000 + ';', 'several')]


@pytest.mark.parametrize('first, second, word', CSV)
def test_what_is_no_class_is_refused(tmp_path, capsys, first, second, word):
    source = write(tmp_path, 'folder', {'a.png': png(0), 'b.png': png(1)})
    (tmp_path / 'l.csv').write_text(f'a.png,{first}\nb.png,{second}\n')
    check_refusal(source, tmp_path, capsys, word, '--labels', tmp_path / 'l.csv')


JSON = [
    ('{"a.png": 0.5, "b.png": 1}', 'scale'), ('{"a.png": [1, 0], "b.png": 1}', 'several'),
    ('{"a.png": true, "b.png": 1}', 'neither'), ('{"labels": [["a.png", 0.5], ["b.png", 1]]}', 'scale'),
    ('{"labels": [["a.png", [0, 1]], ["b.png", [1, 0]]]}', 'several'), ('{"labels": [["a.png", 0]]}', 'b.png'),
    ('{"labels": ["a.png", "b.png"]}', 'pair'), ('{"labels": [["a.png", 0], ["a.png", 1], ["b.png", 1]]}', 'after'),
    ('[' * 200_000, 'nested'), ('{"a":' * 200_000, 'nested'), ('[]', 'JSON object'), ('{', 'labels file'), ('\0', 'labels file'),
    ('{"a.png": 1' + '1' * 5000 + ', "b.png": 1}', 'l.json'),
    ('{"labels": [["a.png", {"x": "' + 'y' * 10000 + '"}]]}', 'neither')]


@pytest.mark.parametrize('text, word', JSON)
def test_files_that_hold_no_classes_are_refused(tmp_path, capsys, text, word):
    source = write(tmp_path, 'folder', {'a.png': png(0), 'b.png': png(1)})
    (tmp_path / 'l.json').write_text(text)
    check_refusal(source, tmp_path, capsys, word, '--labels', tmp_path / 'l.json')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name, data, word', [
    ('dataset.json', b'[' * 200_000, 'nested'), ('dataset.json', b'{', 'dataset.json'), ('dataset.json', b'\xff', 'dataset.json'),
    ('dataset.json', b'{"labels": [["a.png", 0.5], ["b.png", 0]]}', 'scale'),
    ('dataset.json', b'{"labels": [["a.png", [0, 1]], ["b.png", [0, 1]]]}', 'several'),
    ('dataset.json', b'{"labels": [["a.png", 0]]}', 'b.png'), ('dataset.json', b'{"labels": []}', 'no label'),
    ('a.cls', b'', 'a.cls'), ('a.cls', b'x' * 5000, '4096'), ('a.cls', b'\xff', 'a.cls'), ('a.cls', b'0', "'b.png'"),
    ('a.json', b'[' * 200_000, 'nested'), ('a.json', b' ' * 17_000_000, '16777216'), ('a.json', b'{"label": [1, 2]}', 'several'),
    ('a.json', b'{"label": 0.5}', 'scale')])
def test_labels_in_a_source_that_are_none_are_refused(tmp_path, capsys, kind, name, data, word):
    source = write(tmp_path, kind, {'a.png': png(0), 'b.png': png(1), name: data})
    check_refusal(source, tmp_path, capsys, word.replace("'b.png'", "b.png'"))


def check_refusal(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, word: str, *options: object) -> None:
    """One short line that holds `word` and a way out, which is tried."""
    assert run(source, tmp_path / 'out', *options) == 2
    error = capsys.readouterr().err
    assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and word in error and len(error) < 1500
    assert not (tmp_path / 'out').exists()
    if '--no-labels' in error and source.is_dir():  # in other kinds it is the same path
        assert run(source, tmp_path / 'out', '--no-labels') == 0


def test_ten_of_many_are_named(tmp_path, capsys):
    """Without that limit the message once had 2.1 MB."""
    source = write(tmp_path, 'folder', {f'{i:04d}.png': b'x' for i in range(3000)})
    for text, count in (('\n'.join(f'other {i:05d}.png,1' for i in range(20_000)), '3000 pictures'),
                        ('\n'.join(f'{i:04d}.png,1' for i in range(20_000)), '17000 paths')):
        (tmp_path / 'l.csv').write_text(text)
        assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.csv') == 2
        error = capsys.readouterr().err
        assert count in error and 'in all' in error and len(error) < 1500
    (tmp_path / 'l.json').write_text(json.dumps({'labels': {f'{i:05d}.png': i for i in range(30_000)}}))
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.json') == 2 and len(capsys.readouterr().err) < 1500


def test_few_classes_of_many_are_named(tmp_path, capsys):
    source = write(tmp_path, 'folder', {f'c{i:02d}/{j}.png': png(10 * i + j) for i in range(12) for j in range(2)})
    assert run(source, tmp_path / 'out') == 0
    output = capsys.readouterr()
    assert '\nclasses   c00 2, c01 2, ' in output.out and 'c09 2 ... (12 in all)\n' in output.out and 'c10' not in output.out
    assert 'warning' not in output.err


def test_about_one_class_a_picture_is_warned_of(tmp_path, capsys):
    source = write(tmp_path, 'folder', {f'c{i}/{i}.png': png(i) for i in range(6)} | {'c0/x.png': png(6), 'c0/y.png': png(7)})
    assert run(source, tmp_path / 'out') == 0
    assert 'warning: 6 classes of 8 pictures' in capsys.readouterr().err


def test_classes_without_pictures_and_odd_names_are_told(tmp_path, capsys):
    source = write(tmp_path, 'folder', {'a.png': png(0), 'b.png': png(1), 'c.png': png(2), 'd.png': png(3)})
    (tmp_path / 'l.csv').write_text('a.png,0\nb.png,0\nc.png,9\nd.png,9\n')
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.csv') == 0
    assert '\nclasses   0 2, 9 2; 8 without a picture\n' in capsys.readouterr().out
    odd = write(tmp_path / 'odd', 'folder', {f'\x1b[31m{i % 2}\n/{i}.png': png(i) for i in range(4)})
    assert run(odd, tmp_path / 'odd out') == 0 and "classes   '\\x1b[31m0\\n' 2, " in capsys.readouterr().out
