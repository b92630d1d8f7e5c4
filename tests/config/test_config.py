import contextlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from imago.trainer.config.division import fitting_lanes
from imago.trainer.config.load import (
    CONFIGS,
    UNCHECKED,
    Config,
    changed_keys,
    find_config,
    flatten,
    is_fixed,
    load_config,
)
from imago.trainer.config.schema import to_size
from imago.trainer.runs.run_folder import refuse_changes

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
    ('batch=0', r'batch=0: .*greater than or equal to 1'),
    ('batch=many', 'batch='),
    ('loss.name=wasserstain', 'nonsaturating'),
    ('network.name=stylegan9', 'network.name=stylegan9: take one of stylegan2, stylegan1, .*began$'),
    ('network.channels=8', 'unknown key network.channels: networks of another name have it'),
    ('game.name=chess', 'game.name=chess: take one of latent, began, mad_gan, sd_gan$'),
    ('game.generators=2', 'unknown key game.generators: games of another name have it'),
    ('game={name: mad_gan, identity_dim: 8}', 'unknown key game.identity_dim: games of another name have it'),
    ('game={name: began, gama: 1}', 'unknown key game.gama; did you mean game.gamma?'),
    ('loss.name=began', 'loss.name=began: it is game.name=began now'),
    ('network.low_precision=fp8', 'bf16'),
    ('data.resolution=100', 'resolution'),
    ('optim.g_lr=inf', 'finite'),
    ('optim.g_lr=.nan', 'optim.g_lr=.nan: .*a valid number'),
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
    (['batch=64'], 3, 'batch=64 is not a multiple of 3 ranks x micro_batch=8; use batch=72'),
    (['batch=64', 'data.lanes=64'], 3, 'data.lanes=64 is not a multiple of the 3 ranks'),
    (['batch=96', 'data.lanes=64'], 1, 'batch=96 is not a multiple of data.lanes=64; use batch=128'),
    (['batch=64', 'micro_batch=48'], 1, 'micro_batch=48; use batch=96, or micro_batch=32'),
    (['batch=64', 'micro_batch=32'], 4, '4 ranks x micro_batch=32; use batch=128'),
])
def test_divisibility(tmp_path, values, world, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, 'c.yaml', MINIMAL), values).check_world(world)


SMALL = [1, 2, 3, 4, 6, 8, 10, 12, 16, 48, 64]


def test_advice_on_division_is_accepted(tmp_path):
    """This holds for any lanes, batches, micro-batches and ranks, and with pairs, several generators and growth."""
    path, rng, told = write(tmp_path, 'c.yaml', MINIMAL), random.Random(0), Counter()
    kinds = [[], ['network.name=dcgan', 'game.name=sd_gan', 'game.identity_dim=10'],
             ['network.name=dcgan', 'game.name=mad_gan', 'game.generators=3'], ['network.name=pggan']]
    for _ in range(400):
        world, kind = rng.choice(SMALL), rng.choice(kinds)
        values = {key: rng.choice(SMALL) for key in ('data.lanes', 'batch', 'micro_batch')}
        if rng.random() < 0.3:
            values['data.lanes'] = 'null'    # lanes fit themselves
        if kind == kinds[3]:
            values |= {f'growth.{key}.{side}': rng.choice(SMALL) for key in ('batch', 'micro_batch')
                       for side in rng.sample((8, 16, 32), rng.randint(0, 2))}
        overrides = kind + [f'{key}={value}' for key, value in values.items()]
        try:
            load_config(path, overrides).check_world(world)
        except ValueError as error:
            for way in str(error).rpartition('; use ')[2].split(', or '):
                changed = [*overrides, *way.split()]
                # load_config does not know the number of ranks: its advice may fail for `world`, but must pass for one rank
                with contextlib.suppress(ValueError):
                    load_config(path, changed).check_world(world)
                    told[way.split('=')[0]] += 1
                    continue
                load_config(path, changed).check_world(1)
                with pytest.raises(ValueError):
                    load_config(path, overrides)
    assert min(told[key] for key in ('data.lanes', 'batch', 'micro_batch')) > 20


@pytest.mark.parametrize('overrides, world, samples, lanes', [
    ([], 1, 10_000, 64), ([], 8, 10_000, 64), (['batch=16'], 1, 10_000, 16), (['batch=72'], 3, 10_000, 36),
    (['batch=2048'], 256, 10_000, 256), (['batch=60', 'micro_batch=5'], 4, 10_000, 60), ([], 1, 30, 16),
    (['network.name=dcgan', 'game.name=sd_gan', 'game.identity_dim=10'], 2, 10_000, 32),
    (['network.name=pggan', 'growth.batch.8=48'], 1, 10_000, 16),
])
def test_lanes_that_fit(tmp_path, overrides, world, samples, lanes):
    config = load_config(write(tmp_path, 'c.yaml', MINIMAL), overrides)
    config.check_world(world)
    assert fitting_lanes(config, world, samples) == lanes
    load_config(write(tmp_path, 'c.yaml', MINIMAL), [*overrides, f'data.lanes={lanes}']).check_world(world)


def test_too_few_pictures_for_the_ranks(tmp_path):
    with pytest.raises(ValueError, match='5 pictures are too few for 8 ranks'):
        fitting_lanes(load_config(write(tmp_path, 'c.yaml', MINIMAL)), 8, 5)


@pytest.mark.parametrize('values, world, message', [
    (['data.lanes=10', 'batch=10', 'micro_batch=8'], 1, 'micro_batch=8; use batch=40, or micro_batch=5'),
    (['data.lanes=64', 'batch=64'], 3, 'the 3 ranks; use data.lanes=192 batch=192'),
    (['batch=131072', 'micro_batch=99999'], 1, 'micro_batch=99999; use micro_batch=65536'),
])
def test_advice_on_division(tmp_path, values, world, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, 'c.yaml', MINIMAL), values).check_world(world)


def leaves(schema, path=''):
    """(path, schema) of each number of a JSON schema."""
    if schema.get('type') in ('integer', 'number'):
        yield path, schema
    for key, value in schema.items():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                yield from leaves(child, f'{path}.{key}')


def test_every_number_has_bounds_and_is_no_boolean():
    numbers = list(leaves(Config.model_json_schema()))
    assert len(numbers) > 80
    for path, schema in numbers:
        # in unions pydantic leaves its own names
        assert {'minimum', 'exclusiveMinimum', 'ge', 'gt'} & schema.keys(), path
        assert {'maximum', 'exclusiveMaximum', 'le', 'lt'} & schema.keys(), path
    defaults = Config.model_validate(MINIMAL | {'growth': {}}, context=UNCHECKED).model_dump()
    for key, value in flatten(defaults).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            for wrong in (True, '!true', 10**400, float('inf'), '1e999'):
                tree = json.loads(json.dumps(MINIMAL))
                *sections, last = key.split('.')
                below = tree
                for section in sections:
                    below = below.setdefault(section, {})
                below[last] = wrong
                with pytest.raises(ValidationError):
                    Config.model_validate(tree, context=UNCHECKED)


@pytest.mark.parametrize('override', [
    'parallel.timeout_minutes=99999999999999999999999999', 'log.grid=[100000,100000]', 'batch=1000000000008',
    'network.z_dim=100000000000', 'network.mapping_layers=1000000', f'seed={10**4000}', 'growth.batch={8: 1000000000}',
    'growth.batch={1000000000: 8}', 'log.interval_kimg=true', 'log.interval_kimg=1e-9',
    'optim.g_lr={start: 1, end: 0, kimg: 1e30}',
    'optim.betas=[true, 0.9]', 'evaluate.truncation=1e-9', 'run_dir=', 'run_dir=~', 'run_dir=~/runs', 'run_dir="a\\nb"',
    f'run_dir={"r" * 5000}', 'evaluate.extractor=', 'evaluate.extractor_sha256=00', 'data.cache_dir=~/cache', 'data.workers=1e6',
])
def test_senseless_values_are_refused(tmp_path, override):
    path = write(tmp_path, 'c.yaml', MINIMAL | {'network': {'name': 'stylegan1'}})
    with pytest.raises(ValueError) as caught:
        load_config(path, [override])
    assert override.partition('=')[0] in str(caught.value) and len(str(caught.value)) < 500


def test_a_home_folder_is_spelled_out():
    with pytest.raises(ValueError) as caught:
        load_config('demo', ['run_dir=~/runs'])
    assert f'write the whole path, {Path.home()}/runs' in str(caught.value)


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


def test_ten_changes_are_named_and_all_are_counted(tmp_path):
    path = write(tmp_path, 'c.yaml', MINIMAL)
    before, after = load_config(path), load_config(path, ['network.name=dcgan', 'seed=7', f'data.cache_dir={"x/" * 200}x'])
    with pytest.raises(ValueError, match=r'\(network.name: stylegan2 there, dcgan now, seed: 0 there, 7 now, .* in all\)') as caught:
        refuse_changes(before, after, 'runs/old')
    fixed = [key for key in changed_keys(before, after) if is_fixed(key)]
    assert f'({len(fixed)} in all)' in str(caught.value) and len(fixed) > 10
    allowed = refuse_changes(before, load_config(path, [f'data.cache_dir={"x/" * 200}x', 'batch=128']), 'runs/old')
    assert allowed.startswith('batch: 64 there, 128 now, data.cache_dir: null there, x/x/') and len(allowed) < 350


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.yaml')), ids=lambda path: path.stem)
def test_packaged_configs_load_by_name_and_open_with_their_command(path):
    assert find_config(path.stem) == path
    load_config(path.stem).check_world(1)
    assert 'imago train' in path.read_text().splitlines()[0]
