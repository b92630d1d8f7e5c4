"""Two folders matched by name become pairs."""

import json
import tarfile
import zlib

import numpy as np
import pytest
from packs_for_tests import manifest_of, noise, run, samples, save

from imago.trainer.data.shards import SampleReader, open_dataset


@pytest.fixture
def two(tmp_path):
    """Six pictures in each of two folders, by the same names but for the suffixes; picture i of B is noise(100 + i)."""
    for number in range(6):
        save(noise(number), tmp_path / 'A' / f'{"x" if number < 3 else "y"}/{number}.png')
        save(noise(100 + number), tmp_path / 'B' / f'{"x" if number < 3 else "y"}/{number}.bmp')
    return tmp_path


def pack(two, *options):
    return run(two / 'A', two / 'out', '--pair', two / 'B', '--encoding', 'png', *options)


def test_both_pictures_of_a_name_lie_in_one_sample(two, capsys):
    assert pack(two, '--shard-mb', 0.025) == 0
    manifest, seen = manifest_of(two / 'out'), {}
    assert manifest.domains == ('a', 'b') and manifest.num_samples == 6 and len(manifest.shards) > 1
    for sample in samples(two / 'out'):
        assert set(sample) - {'__key__', '__url__', '__local_path__'} == {'a.png', 'b.png', 'cls'}
        a = next(number for number in range(6) if np.array_equal(sample['a.png'], noise(number)))
        assert np.array_equal(sample['b.png'], noise(100 + a)) and sample['cls'] == (0 if a < 3 else 1)
        seen[a] = sample
    assert sorted(seen) == list(range(6))
    told = capsys.readouterr().out
    assert 'packed    6 pairs of pictures of 24x24 px, 2 classes' in told and 'games of two domains' in told
    assert json.loads((two / 'out' / 'dataset.json').read_text())['domains'] == ['a', 'b']


def test_the_checksum_is_of_both_pictures_and_a_flipped_bit_of_either_is_seen(two):
    assert pack(two) == 0
    path = two / 'out' / 'shard-00000.tar'
    with tarfile.open(path) as tar:
        parts = [tar.extractfile(f'000000002.{part}').read() for part in ('a.png', 'b.png', 'cls')]
        line = tar.extractfile('__checksums__').read().decode().splitlines()[2]
        places = {name: tar.getmember(f'000000002.{name}').offset_data + 60 for name in ('a.png', 'b.png')}
    assert line == f'000000002 {zlib.crc32(b"".join(parts)):08x}'
    content = path.read_bytes()
    for place in places.values():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        sample, damaged = SampleReader(open_dataset(two / 'out'), (24, 24), 1).read(0, 2)
        assert sample.key == '000000003' and len(damaged) == 1 and 'CRC-32' in damaged[0]


def test_pictures_without_a_partner_are_named_and_refused(two, capsys):
    for number in range(12):
        save(noise(number), two / 'A' / f'x/lonely{number:02d}.png')
    save(noise(0), two / 'B' / 'x/other.png')
    assert pack(two) == 2
    told = capsys.readouterr().err
    assert f'12 pictures of {two}/A have no partner of the same name in {two}/B: x/lonely00' in told
    assert 'x/lonely09 ... (12 in all)' in told and 'lonely10' not in told
    assert f'1 pictures of {two}/B have no partner of the same name in {two}/A: x/other' in told
    assert not (two / 'out').exists()


def test_a_name_of_two_pictures_is_refused(two, capsys):
    save(noise(0), two / 'A' / 'x/1.webp')
    assert pack(two) == 2
    assert 'have the name of another one but for the suffix: x/1.webp' in capsys.readouterr().err


def test_a_pair_of_which_one_is_broken_is_passed_over(two):
    (two / 'B' / 'y' / '4.bmp').write_bytes(b'BM nothing')
    assert pack(two) == 0
    report = json.loads((two / 'out' / 'report.json').read_text())
    assert [entry['name'] for entry in report['skipped']] == ['y/4.bmp'] and report['pictures'] == 5
    assert manifest_of(two / 'out').class_counts == (3, 2)


def test_pairs_keep_their_sizes_only_together(two):
    save(noise(4, 30, 20), two / 'A' / 'y/4.png')
    assert pack(two, '--keep-sizes') == 0
    report = json.loads((two / 'out' / 'report.json').read_text())
    assert [entry['reason'] for entry in report['skipped']] == [
        '24x24 pixels, the other of its pair 30x20; both must have one size']
    assert manifest_of(two / 'out').smallest == (24, 24)


def test_pairs_must_be_of_one_size_or_brought_to_it(two, capsys):
    save(noise(4, 30, 20), two / 'B' / 'y/4.bmp')
    assert pack(two) == 2
    assert '30x20 pixels' in capsys.readouterr().err
    assert pack(two, '--resolution', 16) == 0
    assert {picture.shape for sample in samples(two / 'out') for picture in (sample['a.png'], sample['b.png'])} == {(16, 16, 3)}


def test_out_is_not_made_inside_the_second_source(two, capsys):
    assert run(two / 'A', two / 'B' / 'out', '--pair', two / 'B') == 2
    assert f'is inside SOURCE {two}/B, among the pictures' in capsys.readouterr().err
