"""Runs on parts of pictures, with conditions, are scored on the same parts."""

import io
import json

import numpy as np
import pytest
from families_for_tests import config_of
from peers_for_tests import write_extractor
from PIL import Image
from runs_for_tests import train_here

from imago.trainer.data.manifest import Manifest
from imago.trainer.data.sealed import write_sealed
from imago.trainer.pack.shards import ShardWriter
from imago.trainer.ranks import dist
from imago.trainer.runs.history import read_evaluations
from imago.trainer.tools import evaluate
from imago.trainer.tools.export import main as export


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Thirty pictures of sizes from 16x20 px on, with conditions of three values."""
    folder, rng = tmp_path_factory.mktemp('mixed'), np.random.default_rng(0)
    with ShardWriter(folder, 'png', 10**6) as writer:
        for number in range(30):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16 + number % 3, 20 + number % 2, 3), dtype=np.uint8)).save(out, 'png')
            writer.write([out.getvalue()], None, rng.normal(size=3))
    Manifest(None, 3, 'png', (), (), tuple(writer.shards), (16, 20), condition_shape=(3,)).write(folder)
    return folder


def test_a_run_an_evaluation_and_an_export_see_the_same_parts(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('IMAGO_METRICS_CACHE', str(tmp_path / 'cache'))
    extractor = write_extractor(tmp_path / 'patches.pt')
    section = {'interval_kimg': 0.024, 'metrics': ['kid', 'ppl'], 'images': 40, 'extractor': extractor[1], 'extractor_size': 8}
    config = config_of('stylegan2', data, tmp_path / 'run', 1, evaluate=section,
                       data={'crop': 16, 'resolution': 8, 'conditional': 'continuous'})
    dist.init('cpu')
    train_here(config)
    kept = read_evaluations(tmp_path / 'run')
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / 'run'), '--extractor', extractor[1], '--json']) == 0
    assert json.loads(capsys.readouterr().out)['values'] == kept[-1]['values']
    assert len(list((tmp_path / 'cache').iterdir())) == 1        # features of the same parts
    assert export([str(tmp_path / 'run'), str(tmp_path / 'export')]) == 0
    capsys.readouterr()
    options = ['--metrics', 'kid,ppl', '--images', '40', '--extractor', extractor[1], '--extractor-size', '8', '--json']
    for source in tmp_path / 'export', tmp_path / 'run' / 'checkpoints' / '000000000048':
        assert evaluate.main([str(source), '--data', str(data), *options]) == 0
        assert json.loads(capsys.readouterr().out)['values'] == kept[-1]['values']
    # an older export says nothing of the crop: reals are as large as its pictures
    path = tmp_path / 'export' / 'generator.json'
    about = json.loads(path.read_text())
    assert about.pop('crop') == [16, 16]
    write_sealed(path, about)
    assert evaluate.main([str(tmp_path / 'export'), '--data', str(data), *options]) == 0
    values = json.loads(capsys.readouterr().out)['values']
    score, = (name for name in values if name.startswith('kid'))
    assert values[score] != kept[-1]['values'][score]
    assert evaluate.main([str(tmp_path / 'run'), '--extractor', extractor[1], '--metrics', 'intra_fid']) == 2
    assert 'intra_fid needs a conditional model and a dataset with classes' in capsys.readouterr().err
