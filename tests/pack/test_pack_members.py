"""`imago pack` counts each member of a source, and reads what strangers made within bounds."""

import io
import json
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from packs_for_tests import folder_of, manifest_of, noise, run, save

from imago.trainer.pack import patterns
from imago.trainer.pack.contents import FORMATS
from imago.trainer.pack.members import tidy
from imago.trainer.pack.patterns import MOST_FILES, expand_braces
from imago.trainer.pack.sources import list_source

FOLDERS = ['', '', 'cat/', 'dog/', 'cat/deep/', 'clip.a/', 'train/cat/', '.hidden/', '__MACOSX/', './cat/', 'l' * 120 + '/']
STEMS = ['0', '1', 'a.b', 't0.25', 'photo.v1', 'photo.v2', 'x.y.z', '._a', 'öl']
SUFFIXES = ['.png', '.png', '.PNG', '.jpg', '.seg.png', '.cls', '.CLS', '.json', '.txt', '', '.tar']
KINDS = ['file'] * 8 + ['folder', 'link', 'hard link', 'pipe']


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed).save(file, 'png')
    return file.getvalue()


PICTURES = [png(seed) for seed in range(4)]


def entries(rng: random.Random, kinds: list[str]) -> list[tuple[str, str]]:
    """(name, kind) of members, in any order, some of them twice."""
    return [(rng.choice(FOLDERS) + rng.choice(STEMS) + rng.choice(SUFFIXES), rng.choice(kinds)) for _ in range(rng.randrange(25))]


def content(name: str, rng: random.Random) -> bytes:
    if name.lower().endswith('.cls'):
        return b'3\n'
    if name.endswith('.json'):
        return rng.choice([b'{"label": 3}', b'{"label": "cat"}', b'{}', b'[]'])
    return rng.choice([*PICTURES, PICTURES[0][:50], b''])


def write_tar(path: Path, members: list[tuple[str, str]], rng: random.Random) -> None:
    types = {'file': tarfile.REGTYPE, 'folder': tarfile.DIRTYPE, 'link': tarfile.SYMTYPE, 'hard link': tarfile.LNKTYPE,
             'pipe': tarfile.FIFOTYPE}
    with tarfile.open(path, 'w', format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            data = content(name, rng) if kind == 'file' else b''
            info.type, info.size, info.linkname = types[kind], len(data), 'elsewhere.png' if 'link' in kind else ''
            tar.addfile(info, io.BytesIO(data))


def write_zip(path: Path, members: list[tuple[str, str]], rng: random.Random) -> None:
    with zipfile.ZipFile(path, 'w', rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, kind in members:
            info = zipfile.ZipInfo(name + '/' * (kind == 'folder'))
            info.external_attr = {'link': stat.S_IFLNK, 'pipe': stat.S_IFIFO}.get(kind, stat.S_IFREG) << 16
            archive.writestr(info, b'' if kind == 'folder' else content(name, rng))


def expected(members: list[tuple[str, str]], kinds: set[str]) -> set[str]:
    """Return the names that must become pictures, found in another way than `imago pack` does."""
    names = {os.path.normpath(name) for name, kind in members if kind in kinds}
    return {name for name in names if os.path.splitext(name)[1].lower() in FORMATS
            and not any(part[0] == '.' or part == '__MACOSX' for part in name.split('/'))}


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('seed', range(100))
def test_each_member_is_a_picture_or_is_counted(tmp_path, seed):
    rng = random.Random(seed)
    for suffix, write, kinds, regular in (('tar', write_tar, KINDS, {'file'}),
                                          ('zip', write_zip, [kind for kind in KINDS if kind != 'hard link'], {'file'})):
        members = entries(rng, kinds)
        write(tmp_path / f'x.{suffix}', members, rng)
        names = expected(members, regular)
        if not names:
            with pytest.raises(ValueError, match='no picture'):
                list_source(str(tmp_path / f'x.{suffix}'), labels=False)
            continue
        listing = list_source(str(tmp_path / f'x.{suffix}'), labels=False)
        assert {picture.name.removeprefix('x.tar/') for picture in listing.pictures} == names
        assert len(listing.pictures) == len(names) and listing.members == len(members)
        assert len(members) == len(names) + sum(listing.ignored.values())


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('kind', ['tar', 'zip', 'folder'])
def test_the_report_counts_each_member(tmp_path, kind):
    rng = random.Random(5)
    members = [(f'{i}.{rng.choice("ab")}.png', 'file') for i in range(20)] + entries(rng, ['file'])
    members = [(name, 'file') for name, _ in members if not name.startswith('./')]
    if kind == 'folder':
        for name, _ in (members := list(dict(members).items())):
            (tmp_path / 'x.folder' / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'x.folder' / name).write_bytes(content(name, rng))
    else:
        {'tar': write_tar, 'zip': write_zip}[kind](tmp_path / f'x.{kind}', members, rng)
    assert run(tmp_path / f'x.{kind}', tmp_path / 'out', '--no-labels') == 0
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['members'] == len(members) == report['pictures'] + len(report['skipped']) + sum(report['ignored'].values())
    assert report['pictures'] == manifest_of(tmp_path / 'out').num_samples > 5 and report['skipped'] and report['ignored']


def test_dotted_names_are_pictures_of_their_own(tmp_path, capsys):
    """WebDataset's key ends at the first dot. Nine of these twelve once got lost, as only the first of each key counted."""
    names = [f'clip.a/t{i // 4}.{i % 4 * 25:02d}.png' for i in range(12)]
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(png(number))
            tar.addfile(info, io.BytesIO(png(number)))
    assert run(tmp_path / 'x.tar', tmp_path / 'out') == 0 and manifest_of(tmp_path / 'out').num_samples == 12
    assert 'several are in: clip.a/t0, clip.a/t1, clip.a/t2\n' in capsys.readouterr().err


def test_a_folder_linked_twice_is_packed_once_and_told(tmp_path):
    folder_of(tmp_path / 'elsewhere', ['a.png'])
    folder_of(tmp_path / 'in', ['b.png'])
    for name in ('one', 'two', 'itself'):
        (tmp_path / 'in' / name).symlink_to(tmp_path / ('in' if name == 'itself' else 'elsewhere'))
    (tmp_path / 'in' / 'endless.png').symlink_to('endless.png')
    listing = list_source(str(tmp_path / 'in'))
    assert len(listing.pictures) == 3 and listing.ignored == {'links to folders that are listed already': 2}


# hostile sources

def test_folders_deeper_than_can_be_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir('a')
        os.chdir('a')
    with pytest.raises(ValueError, match='flatten|no picture'):  # later Pythons follow any number
        list_source(str(tmp_path))
    for _ in range(1500):  # pytest could not remove them
        os.chdir('..')
        os.rmdir('a')


def header(name: bytes, size: bytes, kind: bytes = b'0') -> bytes:
    block = bytearray(512)
    block[:len(name)], block[100:107], block[124:136], block[156:157], block[257:263] = name, b'0000644', size, kind, b'ustar\0'
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


def base256(number: int) -> bytes:
    return (b'\x80' if number >= 0 else b'\xff') + (number % 256 ** 11).to_bytes(11, 'big')


def pax(text: bytes) -> bytes:
    return header(b'x', b'%011o\0' % len(text), b'x') + text.ljust(512, b'\0')


@pytest.mark.parametrize('tail', [
    *(header(b'a.png', base256(size), kind) for size in (2 ** 40, 2 ** 62, 2 ** 63, 2 ** 80, -1, -512, -(2 ** 40))
      for kind in (b'0', b'7', b'L', b'K', b'x', b'g', b'S', b'Z')),
    *(pax(b'%d size=%s\n' % (len(size) + 9, size)) + header(b'a.png', b'%011o\0' % 5) + b'12345'.ljust(512, b'\0')
      for size in (b'-512', b'1099511627776', b'9223372036854775808')),
    pax(b'x') * 3000, header(b'a.png', b'%011o\0' % 5)[:300], header(b'a.png', b'%011o\0' % 5) + b'123', b'\1' * 512])
def test_tars_that_claim_more_than_they_hold(tmp_path, tail):
    whole = header(b'whole.png', b'%011o\0' % 5) + b'12345'.ljust(512, b'\0')
    (tmp_path / 'x.tar').write_bytes(whole + tail)
    tracemalloc.start()
    with pytest.raises(ValueError, match='cannot be read as a WebDataset tar: .'):
        list_source(str(tmp_path / 'x.tar'))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


def test_the_header_above_is_a_good_one(tmp_path):
    (tmp_path / 'x.tar').write_bytes(header(b'whole.png', b'%011o\0' % 5) + b'12345'.ljust(512, b'\0') + bytes(1024))
    assert list_source(str(tmp_path / 'x.tar')).members == 1


def test_joined_and_cut_tars_are_told(tmp_path):
    whole = header(b'whole.png', b'%011o\0' % 5) + b'12345'.ljust(512, b'\0')
    (tmp_path / 'x.tar').write_bytes(2 * (whole + bytes(1024)))
    with pytest.raises(ValueError, match='appended'):
        list_source(str(tmp_path / 'x.tar'))
    for number in range(30):
        (tmp_path / f'{number:02d}.tar').write_bytes(2 * whole)
    notes = list_source(str(tmp_path / '{00..29}.tar')).notes
    assert len(notes) == 1 and 'no end mark' in notes[0] and '09.tar ... (30 in all)' in notes[0]


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_damaged_archives_end_in_one_kind_of_error(tmp_path, kind):
    rng = random.Random(kind)
    members = [(f'{folder}{i}.png', 'file') for i in range(4) for folder in ('cat/', 'l' * 120 + '/')] + [('1.cls', 'file')]
    {'tar': write_tar, 'zip': write_zip}[kind](tmp_path / 'whole', members, rng)
    whole = (tmp_path / 'whole').read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        block = rng.choice([i for i in range(0, len(data) - 512, 512) if data[i + 257:i + 262] == b'ustar'] or [0])
        for _ in range(rng.randrange(1, 4)):
            anywhere, near_the_end = rng.randrange(len(data)), -1 - rng.randrange(900)   # where a zip has its directory
            place = block + rng.randrange(512) if kind == 'tar' else rng.choice([anywhere, near_the_end])
            data[place] = rng.randrange(256)
        if kind == 'tar':  # a hostile header has a right checksum, unlike a damaged one
            data[block + 148:block + 156] = b' ' * 8
            data[block + 148:block + 156] = b'%06o\0 ' % sum(data[block:block + 512])
        (tmp_path / f'x.{kind}').write_bytes(data)
        try:
            pictures = list_source(str(tmp_path / f'x.{kind}')).pictures
        except ValueError:
            refused += 1
            continue
        for picture in pictures:
            with suppress(Exception), picture.open(1 << 16) as file:  # a worker takes any for a damaged picture
                assert len(file.read()) <= 1 << 16
    assert 10 < refused < 390


def bomb(path: Path, method: int, claimed: int, size: int) -> None:
    """Write a zip with one member that claims `claimed` bytes and holds `size`."""
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr('a.png', bytes(size))
    data, crc = bytearray(path.read_bytes()), zlib.crc32(bytes(claimed))
    central = data.index(b'PK\1\2')
    for place in (14, central + 16):
        data[place:place + 4] = struct.pack('<I', crc)
    for place in (22, central + 24):
        data[place:place + 4] = struct.pack('<I', claimed)
    path.write_bytes(data)


def test_a_zip_that_inflates_to_more_than_it_claims(tmp_path):
    bomb(tmp_path / 'x.zip', zipfile.ZIP_DEFLATED, 1000, 40_000_000)
    picture, = list_source(str(tmp_path / 'x.zip')).pictures
    tracemalloc.start()
    with picture.open(1 << 20) as file:
        assert file.read() == bytes(1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6
    with pytest.raises(ValueError, match='1000 bytes, more than 999'):
        picture.open(999)


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_kinds_of_zip_that_have_no_bound_are_not_read(tmp_path, method):
    bomb(tmp_path / 'x.zip', method, 1000, 4000)
    with pytest.raises(ValueError, match='neither stored nor deflated'):
        list_source(str(tmp_path / 'x.zip')).pictures[0].open(1 << 20)


@pytest.mark.parametrize('pattern', ['x{0..999999999}.tar', 'x{0..99999}{0..99999}.tar', '{a{0..9999}{0..9999},b}.tar',
                                     '{a,b}' * 40 + '.tar', '{' * 2000 + '.tar', 'x{}.tar', 'x{a}.tar', '{0..9}' * 2000 + '.tar',
                                     'x{0..99999999999999999999}.tar'])
def test_patterns_are_bounded(tmp_path, capsys, monkeypatch, pattern):
    monkeypatch.setattr(patterns, 'MOST_FILES', 1000)
    tracemalloc.start()
    assert run(pattern, tmp_path / 'out') == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    error = capsys.readouterr().err
    assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_patterns_are_expanded_as_bash_does():
    assert expand_braces('x-{000..003}.tar') == ['x-000.tar', 'x-001.tar', 'x-002.tar', 'x-003.tar']
    assert expand_braces('{3..1}{a,b}.tar') == ['3a.tar', '3b.tar', '2a.tar', '2b.tar', '1a.tar', '1b.tar']
    assert expand_braces('{0..6..3}') == ['0', '3', '6'] and expand_braces('{6..0..-3}') == ['6', '3', '0']
    assert expand_braces('{8..10}') == ['8', '9', '10'] and expand_braces('{08..10}') == ['08', '09', '10']
    assert expand_braces('{a..c}') == ['a', 'b', 'c'] and expand_braces('{,x}.tar') == ['.tar', 'x.tar']
    assert sorted(expand_braces('p{2.{5..7},3.{2,3}}')) == ['p2.5', 'p2.6', 'p2.7', 'p3.2', 'p3.3']
    assert len(expand_braces(f'{{1..{MOST_FILES}}}')) == MOST_FILES


def test_pipes_and_devices_in_place_of_files(tmp_path, capsys):
    """Each is skipped, or refused in one line; none is waited for."""
    source = folder_of(tmp_path / 'in', ['good.png', 'other.png'])
    os.mkfifo(source / 'pipe.png')
    (source / 'zero.png').symlink_to('/dev/zero')
    assert run(source, tmp_path / 'out') == 0
    assert len(json.loads((tmp_path / 'out' / 'report.json').read_text())['skipped']) == 2
    for number, name in enumerate(('good.cls', 'other.json', 'dataset.json', 'shards/x.tar', 'x.zip', 'x.tar', 'labels.csv')):
        for make in (os.mkfifo, lambda path: os.symlink('/dev/zero', path)):
            path = source / name if number < 3 else tmp_path / name
            path.parent.mkdir(exist_ok=True)
            make(path)
            capsys.readouterr()
            options = ['--labels', path] if name == 'labels.csv' else []
            assert run(source if number < 3 or options else path.parent if number == 3 else path, tmp_path / 'x', *options) == 2
            error = capsys.readouterr().err
            assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and path.name in error
            path.unlink()


def test_tidy():
    assert tidy('./cat\\0.png') == tidy('/cat//0.png') == 'cat/0.png'


def test_links_of_an_archive_are_counted(tmp_path):
    save(noise(0), tmp_path / 'a.png')
    os.link(tmp_path / 'a.png', tmp_path / 'b.png')
    with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
        tar.add(tmp_path / 'a.png', 'a.png')
        tar.add(tmp_path / 'b.png', 'b.png')
    listing = list_source(str(tmp_path / 'x.tar'))
    assert listing.members == 2 and listing.ignored == {'links and special files': 1}
