"""Unknown keys lead to what was meant."""

import subprocess
import sys

import pytest

from imago.trainer.config.hints import ELSEWHERE
from imago.trainer.config.load import Config, _known_keys, load_config
from imago.trainer.config.shipped import names


@pytest.mark.parametrize('key, told', [
    ('lr', 'it is optim.g_lr or optim.d_lr here'), ('learning_rate', 'it is optim.g_lr or optim.d_lr here'),
    ('optim.lr', 'it is optim.g_lr or optim.d_lr here'), ('regularizers.gamma', 'it is regularizers.r1 here'),
    ('batch-size', 'it is batch here'), ('z_dim', 'did you mean network.z_dim'), ('resolution', 'did you mean data.resolution'),
    ('totalkimg', 'did you mean total_kimg'), ('network.chanel_max', 'did you mean network.channel_max'),
    ('gpus', 'give --gpus N'), ('loss.began_gamma', 'it is game.gamma now'), ('zzz', '--print-config shows the known ones'),
])
def test_an_unknown_key_leads_to_the_known_one(key, told):
    with pytest.raises(ValueError, match=f'unknown key {key}') as raised:
        load_config('demo', [f'{key}=2'])
    assert told in str(raised.value)


@pytest.mark.parametrize('section, key', [('data=shards', 'data.path'),
                                          ('network=biggan', 'network.name'), ('loss=hinge', 'loss.name')])
def test_a_value_for_a_section_leads_to_a_key_in_it(section, key):
    with pytest.raises(ValueError, match=f'{section}: it is a section; give keys in it, e.g. {key}=VALUE'):
        load_config('demo', [section])


def test_names_of_elsewhere_lead_to_keys_that_exist_and_are_none_themselves():
    known = _known_keys(Config)
    assert {key for keys in ELSEWHERE.values() for key in keys} <= set(known)
    assert not ELSEWHERE.keys() & set(known)


@pytest.mark.parametrize('arguments', [[], ['--gpus', '2']])
def test_train_without_a_configuration_lists_all(arguments):
    done = subprocess.run([sys.executable, '-m', 'imago.launch.cli', 'train', *arguments], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout and len(names()) > 9
    for name in names():
        line, = (line for line in lines if line.startswith(f'  {name} '))
        assert len(line.split('  ')) >= 3, line     # name, source and hardware
