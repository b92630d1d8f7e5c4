"""`imago pack`: what comes out for what goes in, and what is left when it goes wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import webdataset
from packs_for_tests import folder_of, manifest_of, noise, run, samples, save
from PIL import Image


def classes_shown(out: Path) -> dict[bytes, str]:
    """Pixels -> name of the class."""
    names = manifest_of(out).class_names
    return {sample['png'].tobytes(): names[sample['cls']] for sample in samples(out)}


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


CLASSED = [f'{name}/{deep}{i}.png' for name in ('cat', 'dog', 'öl käfer') for deep in ('', 'deep/') for i in range(4)]
TRUTH = {noise(seed).tobytes(): name.split('/')[0] for seed, name in enumerate(CLASSED)}


@pytest.fixture(scope='module')
def classed(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp('classed'), CLASSED)


@pytest.fixture(scope='module')
def packed(classed, tmp_path_factory):
    out = tmp_path_factory.mktemp('packed') / 'out'
    assert run(classed, out, '--encoding', 'png', '--shard-mb', 0.025) == 0
    return out


def test_manifest_is_true_to_the_files(packed):
    manifest, seen = manifest_of(packed), samples(packed)
    assert len(manifest.shards) > 2
    for shard in manifest.shards:
        data = (packed / shard.name).read_bytes()
        assert len(data) == shard.bytes <= 25_000 and hashlib.sha256(data).hexdigest() == shard.sha256
        with tarfile.open(packed / shard.name) as tar:
            assert [name for name in tar.getnames() if name.endswith('png')] == [
                f'{shard.first + k:09d}.png' for k in range(shard.samples)]
            assert {(info.mtime, info.uid, info.gid) for info in tar} == {(0, 0, 0)}
    assert manifest.resolution == (24, 24) and manifest.num_samples == len(seen) == len(CLASSED)
    assert manifest.class_counts == tuple(sum(sample['cls'] == c for sample in seen) for c in range(3)) == (8, 8, 8)
    assert len({sample['cls'] for sample in seen[:manifest.shards[0].samples]}) > 1, 'a shard should mix classes'


def test_labels_come_from_first_level_folders(packed):
    assert classes_shown(packed) == TRUTH and manifest_of(packed).class_names == ('cat', 'dog', 'öl käfer')


@pytest.mark.parametrize('workers', [1, 3])
def test_same_bytes_whatever_the_workers(classed, packed, tmp_path, workers):
    assert run(classed, tmp_path / 'out', '--encoding', 'png', '--shard-mb', 0.025, '--workers', workers) == 0
    assert content(tmp_path / 'out') == content(packed)


@pytest.mark.parametrize('source', ['folder', 'brace', 'zip', 'wrapped zip'])
def test_other_sources_give_the_same_pictures_and_labels(classed, packed, tmp_path, source):
    last = len(manifest_of(packed).shards) - 1
    where = {'folder': packed, 'brace': f'{packed}/shard-0000{{0..{last}}}.tar'}.get(source)
    if where is None:
        where = tmp_path / 'pictures.zip'
        with zipfile.ZipFile(where, 'w') as archive:
            for name in CLASSED:
                archive.write(classed / name, f'top/{name}' if source == 'wrapped zip' else name)
            archive.writestr('../../escaped.png', b'harmless')
            archive.writestr('__MACOSX/cat/._0.png', b'no picture')
    assert run(where, tmp_path / 'out', '--encoding', 'png') == 0
    assert classes_shown(tmp_path / 'out') == TRUTH and manifest_of(tmp_path / 'out').num_samples == len(CLASSED)
    assert not list(tmp_path.parent.rglob('escaped.png'))


def test_labels_of_foreign_tars(tmp_path):
    save(noise(0), tmp_path / 'a.png')
    with webdataset.TarWriter(str(tmp_path / 'x.tar')) as tar:
        for i in range(4):
            label = {'cls': str(i)} if i % 2 else {'json': {'label': i, 'other': 'x'}}
            tar.write({'__key__': f'k{i}', 'png': noise(i), 'txt': 'caption', **label})
    assert run(tmp_path / 'x.tar', tmp_path / 'out', '--encoding', 'png') == 0
    assert classes_shown(tmp_path / 'out') == {noise(i).tobytes(): str(i) for i in range(4)}
    (tmp_path / 'x.tar').write_bytes((tmp_path / 'x.tar').read_bytes()[:4000])
    assert run(tmp_path / 'x.tar', tmp_path / 'cut') == 2


@pytest.mark.parametrize('name, text', [
    ('l.csv', 'a 1.png,yes\nsub/é.png,"no, never"\n'),
    ('l.csv', '\ufeffpath,label\r\n./a 1.png,yes\r\nsub/é.png,"no, never"\r\n'),
    ('l.json', '{"a 1.png": "yes", "sub/é.png": "no, never"}'), ('l.json', '{"a 1.png": 1, "sub/é.png": 0}')])
def test_labels_from_a_file(tmp_path, name, text):
    source = folder_of(tmp_path / 'in', ['a 1.png', 'sub/é.png'])
    (tmp_path / name).write_text(text)
    assert run(source, tmp_path / 'out', '--labels', tmp_path / name, '--encoding', 'png') == 0
    yes, no = ('1', '0') if ': 1' in text else ('yes', 'no, never')
    assert classes_shown(tmp_path / 'out') == {noise(0).tobytes(): yes, noise(1).tobytes(): no}
    assert manifest_of(tmp_path / 'out').class_names == (no, yes)


@pytest.mark.parametrize('text, named', [
    ('a.png,1\n', "'b.png'"),
    ('a.png,1\nb.png,0\nc.png,0\n', "'c.png'"), ('a.png,1\nb.png,-1\n', '-1'), ('a.png\n', 'line 1'),
    ('a.png,1\na.png,2\nb.png,0\n', 'line 2')])
def test_labels_that_do_not_fit_are_refused(tmp_path, capsys, text, named):
    source = folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    (tmp_path / 'l.csv').write_text(text)
    assert run(source, tmp_path / 'out', '--labels', tmp_path / 'l.csv') == 2
    error = capsys.readouterr().err
    assert named in error and error.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_no_labels(tmp_path, classed, capsys):
    assert run(classed, tmp_path / 'asked', '--no-labels') == 0 and manifest_of(tmp_path / 'asked').class_names == ()
    mixed = folder_of(tmp_path / 'in', ['loose.png', 'cat/a.png'])
    assert run(mixed, tmp_path / 'mixed') == 0 and manifest_of(tmp_path / 'mixed').class_names == ()
    assert 'loose.png' in capsys.readouterr().err


@pytest.fixture
def hostile(tmp_path):
    source = folder_of(tmp_path / 'in', ['good.png', 'good copy.webp'])
    data = (source / 'good.png').read_bytes()
    (source / 'cut.png').write_bytes(data[:len(data) // 2])
    (source / 'empty.jpg').touch()
    (source / 'text.jpg').write_text('hello')
    (source / 'dangling.png').symlink_to('nowhere')
    os.mkfifo(source / 'pipe.png')
    (source / 'loop').symlink_to(source, target_is_directory=True)
    save(Image.new('1', (400, 300)), source / 'large.png')
    save(Image.fromarray(np.full((24, 24), np.nan, np.float32)), source / 'nan.tiff')
    for name in ('.DS_Store', 'Thumbs.db', 'notes.txt', '._good.png'):
        (source / name).write_text('x')
    return source


def test_hostile_files_are_skipped_counted_and_named(hostile, tmp_path, capsys):
    assert run(hostile, tmp_path / 'out', '--max-pixels', 100_000) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    skipped = {entry['name']: entry['reason'] for entry in report['skipped']}
    assert set(skipped) == {'cut.png', 'empty.jpg', 'text.jpg', 'dangling.png', 'pipe.png', 'large.png', 'nan.tiff'}
    assert 'max-pixels' in skipped['large.png'] and 'empty' in skipped['empty.jpg'] and str(tmp_path) not in str(report)
    assert report['pictures'] == 2 and report['ignored'] == {
        'hidden': 2, '.db': 1, '.txt': 1, 'links to folders that are listed already': 1}
    assert report['members'] == 14
    assert '7 skipped' in capsys.readouterr().err


def test_duplicates_and_enlarged_are_counted(tmp_path):
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    save(noise(0), tmp_path / 'in' / 'again.bmp')
    assert run(tmp_path / 'in', tmp_path / 'out', '--resolution', 32) == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert (report['duplicates'], report['enlarged']) == (1, 3)


def test_strict_fails_at_the_first_bad_picture(hostile, tmp_path, capsys):
    assert run(hostile, tmp_path / 'out', '--strict', '--max-pixels', 100_000) == 2
    assert 'without --strict' in capsys.readouterr().err and os.listdir(tmp_path) == ['in']


def test_mixed_sizes_are_refused(tmp_path, capsys):
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    save(noise(2, 24, 20), tmp_path / 'in' / 'c.png')
    assert run(tmp_path / 'in', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert "'c.png'" in error and '24x20' in error and '24x24' in error and '--resolution' in error
    assert sorted(os.listdir(tmp_path)) == ['in']


@pytest.mark.parametrize('flags', [
    ['--resolution', '24.5'], ['--resolution', '25'], ['--resolution', '99999'], ['--fit', 'pad'],
    ['--background', 'mauvish'], ['--quality', '0'], ['--lossless', '--encoding', 'png'], ['--workers', '0'],
    ['--workers', '100000'], ['--shard-mb', '0'], ['--white-level', '0'], ['--white-level', '65536'],
    ['--white-level', 'auto4']])
def test_senseless_flags_are_refused(classed, tmp_path, capsys, flags):
    assert run(classed, tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and flags[0][2:] in error


@pytest.mark.parametrize('source', ['absent', 'empty', 'file.txt'])
def test_sources_that_are_none(tmp_path, capsys, source):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file.txt').touch()
    assert run(tmp_path / source, tmp_path / 'out') == 2
    assert source in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_existing_out(classed, packed, tmp_path):
    out = tmp_path / 'out'
    folder_of(out, ['mine.png'])
    assert run(classed, out) == 2 and run(classed, out, '--overwrite') == 2 and os.listdir(out) == ['mine.png']
    (out / 'mine.png').unlink()
    assert run(classed, out) == 0, 'an empty folder is free'
    before = content(out)
    assert run(classed, out) == 2 and content(out) == before
    assert run(tmp_path / 'absent', out, '--overwrite') == 2 and content(out) == before
    assert run(classed, out, '--overwrite', '--encoding', 'png', '--shard-mb', 0.025) == 0
    assert content(out) == content(packed)
    (out / '.imago-pack').touch()
    out.rename(tmp_path / 'out.tmp-old')  # as a kill between the two renames leaves it
    assert run(classed, out) == 2 and content(out) == content(packed)
    assert os.listdir(tmp_path) == ['out']


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_leaves_nothing_that_looks_complete(tmp_path, capsys, number):
    save(noise(0, 256, 256), tmp_path / 'one.png')
    with tarfile.open(tmp_path / 'one.tar', 'w') as tar:
        tar.add(tmp_path / 'one.png', 'one.png')
    (tmp_path / 'in').mkdir()
    for i in range(200):
        (tmp_path / 'in' / f'{i}.png').symlink_to(tmp_path / 'one.png')
    command = [sys.executable, '-m', 'imago.trainer.pack.command', 'in', 'out', '--workers=2', '--shard-mb=0.5', '--lossless']
    environment = os.environ | {'PYTHONPATH': os.getcwd()}
    # a shell's background job, as the suite may be one, would hand down an ignored SIGINT
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / 'out.tmp-pack' / 'shard-00001.tar').exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        assert process.returncode is None
    assert run(tmp_path / 'one.tar', tmp_path / 'out') == 2 and 'another imago pack' in capsys.readouterr().err
    process.send_signal(number)
    stderr = process.communicate(timeout=30)[1]  # ends when the workers, who share the pipe, have ended too
    assert process.returncode == (-number if number == signal.SIGKILL else 130), stderr.decode()
    assert b'Traceback' not in stderr
    assert not (tmp_path / 'out').exists()
    assert (tmp_path / 'out.tmp-pack').exists() == (number == signal.SIGKILL)
    for i in range(2, 200):
        (tmp_path / 'in' / f'{i}.png').unlink()
    assert run(tmp_path / 'in', tmp_path / 'out') == 0 and manifest_of(tmp_path / 'out').num_samples == 2
    assert sorted(os.listdir(tmp_path)) == ['in', 'one.png', 'one.tar', 'out']
    assert len(list((tmp_path / 'out').glob('*.tar'))) == 1
