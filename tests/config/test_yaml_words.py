"""What is typed is what is meant: YAML gives words, the schema numbers; and nothing in a file costs more than its size."""

import random

import pytest
import yaml

from imago.trainer.config.load import UNCHECKED, Config, flatten, load_config, to_yaml
from imago.trainer.config.networks import SECTIONS
from imago.trainer.config.schema import name_of
from imago.trainer.config.yaml_words import parse_yaml
from imago.trainer.wording import MOST_SHOWN, MOST_TOLD, one_line, shown

# words that YAML 1.1 or 1.2 takes for booleans, nulls, dates, numbers of several bases, or for no plain words at all
WORDS = ['off', 'on', 'yes', 'no', 'y', 'N', 'true', 'False', 'null', '~', 'NULL', '=', '<<', '2024-01-01', '2024-01-01 12:30:00',
         '1:30', '190:20:30', '12', '-12', '+12', '010', '0o17', '0x1F', '0b11', '1_000', '08', '1e3', '12e4567', '1e-3', '1.5',
         '.5', '-.5', '+.5e3', '.inf', '-.INF', '.nan', 'a: b', 'a #b', '- a', '? a', '*a', '&a', '!a', '%a', '@a', '`a`', '|',
         '>', "it's", '"quoted"', ' spaces ', 'a  b', 'x' * 200 + ' ' + 'y z ' * 60, '[a]', '{a: b}', 'ünï😀',
         'a\\b', 'runs/a b', ',']
NUMBERS = [0, 1, 2, 3, 7, 16, 64, 1000, 99_999, 1 << 17, (1 << 63) - 1, 0.001, 0.1, 1 / 3, 0.25, 0.999, 1.5, 1e-8, 1e-5, 1e8, 1e9,
           123456789.125, -1, -0.5]
OTHERS = [True, False, None, [4, 8], [0.1, 0.2], [0.1, 0.2, 0.3], ['fid', 'is'], ['blit'], ['color', 'cutout'], [64, 96],
          {}, {8: 16, 4: 2}, {8: 0.001}, {'real_sign': 0.9, 'duplicates': 1e-3}, {'start': 0, 'end': 1e-7, 'kimg': 0.5}, 'off',
          'fsdp', 'hinge', 'ada', 'cpu', 'fid', 'f' * 64]


def tree_with(key, value, network):
    tree = {'run_dir': 'r', 'data': {'path': 'd'}, 'growth': {}, 'network': {'name': network}}
    put(tree, key, value)
    return tree


def put(tree, key, value):
    *sections, last = key.split('.')
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def accepted(key, value, network):
    try:
        Config.model_validate(tree_with(key, value, network), context=UNCHECKED)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize('section', SECTIONS.values(), ids=lambda section: section.__name__)
def test_what_we_write_reads_back_to_the_same_values(section):
    """Values of every kind for every key; the writer is the one of old run folders."""
    network = name_of(section)
    defaults = flatten(Config.model_validate(tree_with('seed', 0, network), context=UNCHECKED).model_dump())
    # the other sections once
    choices = {key: [default] for key, default in defaults.items() if network == 'stylegan2' or key.startswith('network')}
    if network == 'stylegan2':
        choices |= {key: [{}] for key in ('growth.batch', 'growth.g_lr', 'guard.thresholds')}
    for key, values in choices.items():
        values += [value for value in WORDS + NUMBERS + OTHERS if accepted(key, value, network)]
    assert sum(map(len, choices.values())) > 5 * len(choices)
    rng = random.Random(0)
    for _ in range(25):
        tree = tree_with('seed', 0, network)
        for key, values in choices.items():
            put(tree, key, rng.choice(values))
        config = Config.model_validate(tree, context=UNCHECKED)
        assert Config.model_validate(parse_yaml(to_yaml(config)), context=UNCHECKED) == config


@pytest.mark.parametrize('override, key, value', [
    ('guard.action=off', 'guard.action', 'off'),
    ('run_dir=12e4567', 'run_dir', '12e4567'),
    ('run_dir=2024-01-01', 'run_dir', '2024-01-01'),
    ('run_dir=1:30', 'run_dir', '1:30'),
    ('run_dir=no', 'run_dir', 'no'),
    ('optim.g_lr=1e-3', 'optim.g_lr', 0.001),
    ('optim.eps=1E-7', 'optim.eps', 1e-7),
    ('optim.betas=[0, 9e-1]', 'optim.betas', (0, 0.9)),
    ('batch="128"', 'batch', 128),             # quoted or not, it is a number's key
    ('seed=010', 'seed', 10),
    ('data.flip=yes', 'data.flip', True),
    ('data.flip=off', 'data.flip', False),
    ('data.cache_dir=null', 'data.cache_dir', None),
    ('data.cache_dir="null"', 'data.cache_dir', 'null'),
    ('checkpoint.best=', 'checkpoint.best', None),
    ('network={name: dcgan, channels: 8}', 'network.channels', 8),
])
def test_a_word_is_what_its_key_takes(tmp_path, override, key, value):
    for overrides in ([override], []):
        tree = 'run_dir: r\ndata: {path: d}\n'
        if not overrides:    # the same in a file, the first way by an override
            name, _, text = override.partition('=')
            *sections, last = name.split('.')
            (tmp_path / 'c.yaml').write_text(tree)
            tree = ''.join('  ' * depth + section + ':\n' for depth, section in enumerate(sections)) \
                + '  ' * len(sections) + f'{last}: {text}\nbase: c.yaml\n'
        path = tmp_path / 'd.yaml'
        path.write_text(tree)
        found = load_config(path, overrides)
        for name in key.split('.'):
            found = getattr(found, name)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize('text, message', [
    ('!!timestamp x', 'the tag tag:yaml.org,2002:timestamp'),
    ('!!bool x', 'the tag tag:yaml.org,2002:bool'),
    ('!!python/name:os.system x', 'the tag tag:yaml.org,2002:python/name:os.system'),
    ('!!set {a}', 'the tag'),
    ('[' * 5000, 'nested too deeply'),
    ('{a: ' * 5000, 'nested too deeply'),
    ('&a [*a]', 'nested too deeply'),
    ('[&a [1, 1, 1, 1], &b [*a, *a, *a, *a], &c [*b, *b, *b, *b], &d [*c, *c, *c, *c], &e [*d, *d, *d, *d], '
     '&f [*e, *e, *e, *e], [*f, *f, *f, *f]]', 'more than 10000 values'),
    ('{a: 1, a: 2}', 'the key a once more'),
    ('{[a]: 1}', 'which is no word'),
    ('"\\UFFFFFFFF"', 'not valid YAML'),
    ('a\x00b', 'not valid YAML'),
    ('*' + 'x' * 10_000, 'not valid YAML'),
    ('[1', 'not valid YAML'),
])
def test_what_no_configuration_needs_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config('demo', [f'seed={text}'])
    assert len(str(caught.value)) < 1000 and '\n' not in str(caught.value)
    (tmp_path / 'c.yaml').write_text(f'seed: {text}\n')
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / 'c.yaml')


def test_aliases_stand_for_what_they_name():
    assert parse_yaml('a: &rates {8: 0.1}\nb: *rates') == {'a': {'8': '0.1'}, 'b': {'8': '0.1'}}


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path):
    path = tmp_path / 'c.yaml'
    for content, message in ((b'\xff\xfe\x00', 'UTF-8'), (b'#' * (1 << 18) + b'\n', 'more than 262144 bytes')):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_config(path)


def test_values_in_messages_are_short_and_on_one_line():
    assert shown('a\nb\x1b[2J\u2028\ud800') == r'a\nb\x1b[2J\u2028\ud800'
    assert shown('x' * 1000) == 'x' * MOST_SHOWN + ' ... (1000 characters)'
    assert [shown(value) for value in (None, True, 0, '', [1])] == ['null', 'true', '0', "''", '[1]']
    assert len(one_line('\n' * 10_000)) < 2 * MOST_TOLD + 100
    for overrides in ([f'run_dir={"x" * 100_000}'], [f'{"k" * 100_000}=1'], [f'seed=[{"1, " * 5000}]'], ['x' * 100_000],
                      [f'unknown{number}=1' for number in range(5000)], [f'loss.name={"x" * 100_000}'],
                      [f'network.name={"x" * 100_000}'], [f'data.resolution={"9" * 100_000}'], ['.'.join('a' * 5000) + '=1'],
                      [f'growth.batch={{{"9" * 100_000}: 1}}'], [f'seed={"9" * 100_000}']):
        with pytest.raises(ValueError) as caught:
            load_config('demo', overrides)
        assert len(str(caught.value)) < MOST_TOLD and '\n' not in str(caught.value), str(caught.value)[:3000]


def test_the_writer_is_that_of_old_run_folders():
    config = load_config('demo', ['guard.action=off', 'run_dir=12e4567'])
    assert to_yaml(config) == yaml.safe_dump(config.model_dump(mode='json'), sort_keys=False)
    assert "action: 'off'" in to_yaml(config) and 'run_dir: 12e4567\n' in to_yaml(config)
