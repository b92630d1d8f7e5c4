"""What older versions of Imago have written still serves; what cannot be checked in it is said in a line."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import tiny_config
from shards_for_tests import write_dataset

from imago.trainer.data.shards import open_dataset
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import SEAL, find_damage
from imago.trainer.runs.export import load_generator
from imago.trainer.start import prepare
from imago.trainer.tools import export, sample
from imago.trainer.train import train


@pytest.fixture
def of_before(tmp_path):
    """A run, an export and pictures that commit 9e99525 made, before there were checksums."""
    with tarfile.open(Path(__file__).parents[1] / 'data' / 'before-checksums.tar.xz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


def test_what_older_versions_made_still_loads(of_before, tmp_path, capsys):
    for source in ('run', 'export', 'run/checkpoints/000000000024'):
        assert sample.main([str(of_before / source), '--out', str(tmp_path / 'now' / source), '--seeds', '0-1']) == 0
        assert capsys.readouterr().err.count('it cannot be checked') == 1
        for then in (of_before / 'pictures').iterdir():
            now, = (tmp_path / 'now' / source).glob(f'*-{then.stem}-*')
            pictures = [np.asarray(Image.open(path)).astype(int) for path in (then, now)]
            assert np.abs(pictures[0] - pictures[1]).max() <= 1    # another processor may round otherwise
    assert export.main([str(of_before / 'export'), str(tmp_path / 'again')]) == 0
    capsys.readouterr()
    assert load_generator(tmp_path / 'again') and not capsys.readouterr().err


def test_a_run_of_an_older_version_goes_on(of_before, tmp_path, capsys):
    dist.init('cpu')
    data = write_dataset(tmp_path / 'data', (13, 10, 7), classes=3, size=16)
    newest = of_before / 'run' / 'checkpoints' / '000000000024'
    seal = json.loads((newest / SEAL).read_text())
    seal['dataset'] = open_dataset(str(data)).manifest.digest()     # another Pillow may have written other bytes
    (newest / SEAL).write_text(json.dumps(seal))
    run = prepare(tiny_config(data, of_before / 'run', total_kimg=0.048, network={
        'z_dim': 2, 'w_dim': 2, 'mapping_layers': 1, 'channel_base': 16, 'channel_max': 2}, data={
        'path': str(data), 'lanes': 12, 'workers': 0, 'conditional': True, 'resolution': [4, 4]}))
    assert run.state.nimg == 24 and 'it cannot be checked' in capsys.readouterr().out
    train(run)
    assert find_damage(newest.with_name('000000000048')) is None
