"""Pictures that keep their own sizes."""

import json

import numpy as np
from packs_for_tests import manifest_of, noise, run, samples, save


def test_pictures_keep_their_sizes_and_the_manifest_tells_the_smallest(tmp_path, capsys):
    wanted = {(24 + number, 40 - number): noise(number, 24 + number, 40 - number) for number in range(6)}
    for number, picture in enumerate(wanted.values()):
        save(picture, tmp_path / 'in' / f'{number}.png')
    save(noise(9, 3, 40), tmp_path / 'in' / 'thin.png')
    assert run(tmp_path / 'in', tmp_path / 'out', '--keep-sizes', '--encoding', 'png') == 0
    assert {sample['png'].shape[:2]: True for sample in samples(tmp_path / 'out')} == dict.fromkeys(wanted, True)
    assert all(np.array_equal(sample['png'], wanted[sample['png'].shape[:2]]) for sample in samples(tmp_path / 'out'))
    manifest = manifest_of(tmp_path / 'out')
    assert (manifest.resolution, manifest.smallest, manifest.num_samples) == (None, (24, 35), 6)
    skipped, = json.loads((tmp_path / 'out' / 'report.json').read_text())['skipped']
    assert skipped == {'name': 'thin.png', 'reason': '3x40 pixels, where each side must be 4 to 16383'}
    told = capsys.readouterr().out
    assert 'packed    6 pictures of at least 24x35 px' in told and 'data.crop=16x16 data.resolution=16x16' in told


def test_sizes_are_either_kept_or_one(tmp_path, capsys):
    save(noise(0), tmp_path / 'in' / '0.png')
    assert run(tmp_path / 'in', tmp_path / 'out', '--keep-sizes', '--resolution', '16') == 2
    assert '--resolution 16 brings all to one size, and --keep-sizes does not' in capsys.readouterr().err
    assert run(tmp_path / 'in', tmp_path / 'out', '--keep-sizes', '--fit', 'crop') == 2
    assert not (tmp_path / 'out').exists()


def test_one_size_is_as_it_was(tmp_path):
    save(noise(0), tmp_path / 'in' / '0.png')
    assert run(tmp_path / 'in', tmp_path / 'out') == 0
    assert list(json.loads((tmp_path / 'out' / 'dataset.json').read_text())) == [
        'format', 'num_samples', 'resolution', 'channels', 'encoding', 'class_names', 'class_counts', 'shards']
