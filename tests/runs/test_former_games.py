"""Runs and exports of the days when BEGAN and MAD-GAN were losses and SD-GAN a way to read the data still serve."""

import json
import tarfile
from pathlib import Path

import pytest
from runs_for_tests import largest_difference, tiny_config, train_here
from safetensors.torch import load_file
from shards_for_tests import write_dataset

from imago.trainer.config.former import RENAMED, translate
from imago.trainer.config.load import load_config, parse_kept
from imago.trainer.data.shards import open_dataset
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import SEAL
from imago.trainer.runs.export import load_generator, open_maker
from imago.trainer.runs.run_folder import read_config
from imago.trainer.tools.compare import trained_on

DCGAN = {'name': 'dcgan', 'z_dim': 4, 'channels': 2}
GAMES = {'began': {'game': {'name': 'began', 'rate': 0.1},
                   'network': {'name': 'began', 'z_dim': 4, 'channels': 2, 'code_dim': 4}},
         'mad_gan': {'game': {'name': 'mad_gan', 'generators': 3}, 'network': DCGAN},
         'sd_gan': {'game': {'name': 'sd_gan', 'identity_dim': 2}, 'network': DCGAN}}
CHECKPOINT = Path('checkpoints') / '000000000024'


@pytest.fixture
def of_before(tmp_path):
    """A run of each game after 2 of 4 steps, the state that the same code came to after all 4, and an export; of commit 1c4ba8b."""
    with tarfile.open(Path(__file__).parent.parent / 'data' / 'before-games.tar.xz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


@pytest.mark.parametrize('name', GAMES)
def test_a_run_goes_on_as_it_would_have(of_before, tmp_path, name):
    dist.init('cpu')
    data, run = write_dataset(tmp_path / 'pictures', (13, 10, 7), classes=3, size=16), of_before / name
    assert trained_on(run / CHECKPOINT)[1].game == read_config(run).game and read_config(run).game.name == name
    seal = json.loads((run / CHECKPOINT / SEAL).read_text())
    seal['dataset'] = open_dataset(str(data)).manifest.digest()     # another Pillow may have written other bytes
    (run / CHECKPOINT / SEAL).write_text(json.dumps(seal))
    lanes = 6 if name == 'sd_gan' else 12
    tree = {'path': str(data), 'lanes': lanes, 'workers': 0, 'resolution': [4, 4]}
    found = train_here(tiny_config(data, run, data=tree, regularizers={}, micro_batch=12, **GAMES[name]))
    expected = load_file(run / 'end.safetensors')
    compared = [key for key in found if not key.startswith(('opt_', 'guard.'))]
    assert found['nimg'] == 48 and {'G', 'D', 'G_ema', 'scalars'} < {key.split('.')[0] for key in compared}
    # bitwise where it was made; another processor may round otherwise
    assert largest_difference({key: found[key] for key in compared}, {key: expected[key] for key in compared}) < 1e-4


def test_the_generators_of_an_export_are_those_of_its_run(of_before):
    export, run = (load_generator(of_before / 'mad_gan' / name).state_dict() for name in ('export', '.'))
    assert export.keys() == run.keys() and all(export[key].equal(run[key]) for key in run)
    maker, about = open_maker(of_before / 'mad_gan' / 'export')
    assert about['game'] == 'mad_gan' and maker.class_counts == (1, 1, 1)
    assert [index.item() for index in maker.inputs(range(8)).labels.unique()] == [0, 1, 2]


def test_other_configurations_stay_what_they_are():
    """A configuration with `game` is a new one, whatever else it holds; what is no configuration is left to the schema."""
    for tree in ({}, {'loss': []}, {'game': {'name': 'latent'}, 'data': {'pairs': True}, 'network': {}, 'loss': {}}):
        assert translate(tree) == tree
        with pytest.raises(ValueError):
            parse_kept(tree, 'seal')


@pytest.mark.parametrize('key', RENAMED)
def test_a_former_key_of_a_users_own_is_refused_with_its_name_of_today(key):
    with pytest.raises(ValueError, match=f'unknown key {key}; it is {RENAMED[key]} now'):
        load_config('dcgan-64', [f'{key}=1'])


@pytest.mark.parametrize('name', ['began', 'mad_gan'])
def test_a_former_loss_of_a_users_own_is_refused_with_its_name_of_today(name):
    with pytest.raises(ValueError, match=f'loss.name={name}: it is game.name={name} now'):
        load_config('dcgan-64', [f'loss.name={name}'])
