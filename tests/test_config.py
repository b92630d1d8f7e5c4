import pytest
import yaml

from trainer.config import (
    CONFIGS,
    changed_keys,
    find_config,
    is_fixed,
    load_config,
)
from trainer.schema import to_size

MINIMAL = {'run_dir': 'r', 'data': {'path': 'd'}}


def write(folder, name, tree):
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def test_yaml_base_and_overrides_in_that_order(tmp_path):
    write(tmp_path, 'base.yaml', {**MINIMAL, 'batch': 128, 'optim': {'g_lr': 0.1, 'd_lr': 0.2}})
    path = write(tmp_path, 'child.yaml', {'base': 'base.yaml', 'optim': {'g_lr': 0.3}})
    config = load_config(path, ['optim.d_lr=1e-3', 'data.resolution=768x512', 'total_kimg=1.5'])
    assert (config.batch, config.optim.g_lr, config.optim.d_lr) == (128, 0.3, 0.001)
    assert (config.data.resolution, config.total_nimg) == ((768, 512), 1500)


def test_a_base_has_no_base(tmp_path):
    write(tmp_path, 'a.yaml', {**MINIMAL, 'base': 'x.yaml'})
    with pytest.raises(ValueError, match='only one level'):
        load_config(write(tmp_path, 'b.yaml', {'base': 'a.yaml'}))


@pytest.mark.parametrize('override, message', [
    ('optim.g_ls=1', 'unknown key optim.g_ls; did you mean optim.g_lr?'),
    ('optm.g_lr=1', 'did you mean optim'),
    ('batch=0', r'batch=0: .*greater than 0'),
    ('batch=many', 'batch='),
    ('loss.name=wasserstain', 'nonsaturating'),
    ('network.low_precision=fp8', 'bf16'),
    ('data.resolution=100', 'resolution'),
    ('optim.g_lr=.inf', 'finite'),
    ('batch', 'dotted.key=value'),
    ('data=5', 'data=5'),
])
def test_bad_values_name_key_limit_and_fix(tmp_path, override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(write(tmp_path, 'c.yaml', MINIMAL), [override])
    assert '\n' not in str(caught.value)


def test_missing_files_and_keys(tmp_path):
    with pytest.raises(ValueError, match='demo'):
        load_config('no-such-config')
    with pytest.raises(ValueError, match='run_dir is missing'):
        load_config(write(tmp_path, 'c.yaml', {'data': {'path': 'd'}}))
    (tmp_path / 'broken.yaml').write_text('a: [1')
    with pytest.raises(ValueError, match='not valid YAML'):
        load_config(tmp_path / 'broken.yaml')


@pytest.mark.parametrize('values, world, message', [
    (['batch=64'], 3, 'data.lanes=64 is not a multiple of the 3 ranks'),
    (['batch=96'], 1, 'batch=96 is not a multiple of data.lanes=64; use batch=128'),
    (['batch=64', 'micro_batch=48'], 1, 'micro_batch=48; use batch=96'),
    (['batch=64', 'micro_batch=32'], 4, '4 ranks x micro_batch=32; use batch=128'),
])
def test_divisibility(tmp_path, values, world, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, 'c.yaml', MINIMAL), values).check_world(world)


def test_resolution_forms():
    assert to_size(512) == to_size('512') == to_size([512, 512]) == (512, 512)
    assert to_size('768x512') == (768, 512)
    with pytest.raises(ValueError, match='12 x 4 is not a size'):
        to_size('12 x 4')


def test_what_makes_a_run_what_it_is(tmp_path):
    path = write(tmp_path, 'c.yaml', MINIMAL)
    changes = changed_keys(load_config(path), load_config(path, ['network.z_dim=8', 'optim.g_lr=1', 'data.flip=true']))
    assert changes['network.z_dim'] == (512, 8)
    assert sorted(key for key in changes if is_fixed(key)) == ['data.flip', 'network.z_dim']


@pytest.mark.parametrize('there, now, changes, fixed', [
    ([], ['optim.g_lr={start: 1, end: 0, kimg: 5}'],
     {'optim.g_lr': (0.002, None), 'optim.g_lr.start': (None, 1), 'optim.g_lr.end': (None, 0), 'optim.g_lr.kimg': (None, 5)},
     []),
    (['network.name=pggan', 'growth.start_resolution=16'], ['network.name=pggan'],
     {'growth.start_resolution': (16, None), 'growth.fade_kimg': (600, None), 'growth.stage_kimg': (600, None),
      'growth.penalty_at': ('stage', None), 'growth.restart': ('start', None)},
     ['growth.fade_kimg', 'growth.penalty_at', 'growth.restart', 'growth.stage_kimg', 'growth.start_resolution']),
])
def test_keys_that_only_one_of_two_configurations_has(tmp_path, there, now, changes, fixed):
    path = write(tmp_path, 'c.yaml', MINIMAL)
    for one, other, expected in ((there, now, changes), (now, there, {key: pair[::-1] for key, pair in changes.items()})):
        found = changed_keys(load_config(path, one), load_config(path, other))
        assert found == expected
        assert sorted(key for key in found if is_fixed(key)) == fixed


def test_another_family_is_another_run(tmp_path):
    path = write(tmp_path, 'c.yaml', MINIMAL)
    changes = changed_keys(load_config(path), load_config(path, ['network.name=dcgan']))
    assert changes['network.name'] == ('stylegan2', 'dcgan') and changes['network.channels'] == (None, 64)
    assert all(is_fixed(key) for key in changes)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.yaml')), ids=lambda path: path.stem)
def test_packaged_configs_load_by_name_and_open_with_their_command(path):
    assert find_config(path.stem) == path
    load_config(path.stem).check_world(1)
    assert 'imago train' in path.read_text().splitlines()[0]
