"""A run that goes on with more pictures, because it was told to: exact from there, and known to its checkpoints."""

import json
import shutil

import pytest
from runs_for_tests import differing, tiny_config, train_here
from shards_for_tests import write_dataset

from imago.trainer.runs.checkpoint import SEAL
from imago.trainer.start import prepare


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('grown'), (13, 10, 7, 11), classes=3, size=16)


def test_a_run_goes_on_with_more_pictures(shards, grown, tmp_path):
    def config(folder, data, kimg, **changes):
        return tiny_config(shards, tmp_path / folder, total_kimg=kimg, data={'path': str(data), 'workers': 0, **changes})

    train_here(config('run', shards, 0.024))
    with pytest.raises(ValueError, match='another dataset than .*, with 30 pictures; it has 41. .*data.changed=accept'):
        prepare(config('run', grown, 0.048))
    shutil.copytree(tmp_path / 'run', tmp_path / 'twice')
    straight = train_here(config('run', grown, 0.048, changed='accept'))
    train_here(config('twice', grown, 0.036, changed='accept'))
    assert not differing(straight, train_here(config('twice', grown, 0.048)))
    seal, last = (json.loads((tmp_path / 'twice' / 'checkpoints' / f'{nimg:012d}' / SEAL).read_text()) for nimg in (24, 48))
    assert last['datasets'] == [{'dataset': seal['dataset'], 'pictures': 30, 'nimg': 24}] and last['pictures'] == 41
    assert last['dataset'] != seal['dataset'] and 'datasets' not in seal
    reports = [json.loads(line) for line in (tmp_path / 'twice' / 'stats.jsonl').read_text().splitlines()]
    assert [(report['nimg'], report['data/pictures']) for report in reports] == [(12, 30), (24, 30), (36, 41), (48, 41)]


def test_other_classes_are_refused(shards, tmp_path):
    other = write_dataset(tmp_path / 'other', (30, 9), classes=4, size=16)
    data = {'workers': 0, 'conditional': True}
    train_here(tiny_config(shards, tmp_path / 'run', total_kimg=0.012, data={'path': str(shards), **data}))
    with pytest.raises(ValueError, match='has other classes or sizes'):
        prepare(tiny_config(shards, tmp_path / 'run', data={'path': str(other), 'changed': 'accept', **data}))
