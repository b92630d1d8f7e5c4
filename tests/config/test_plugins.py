"""A loss and a network from a user's own module work in every command; no folder of a stranger's makes one be imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs_for_tests import differing, read_checkpoint, write_tiny

import imago
from imago.trainer.config.load import load_config

DOCS = Path(__file__).parents[2] / 'docs'


def imago_command(*words: object, cwd: Path, plugins: str = '') -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'imago.launch.cli', *map(str, words)], cwd=cwd, text=True, capture_output=True,
                          env=os.environ | {'IMAGO_PLUGINS': plugins, 'PYTHONPATH': str(DOCS.parent)})


@pytest.fixture
def user(tmp_path: Path, shards: Path) -> Path:
    """A folder with the plugins that the pages show, and a configuration that takes both."""
    blocks = [re.findall(r'```python\n(.*?)```', (DOCS / page).read_text(), flags=re.DOTALL)
              for page in ('api.md', 'write-a-network.md')]
    (tmp_path / 'my_losses.py').write_text(blocks[0][2])
    (tmp_path / 'my_networks.py').write_text('\n'.join(blocks[1]))
    write_tiny(shards, tmp_path / 'run', tmp_path / 'mine.yaml', plugins=['my_losses', 'my_networks'],
               loss={'name': 'soft_hinge'}, network={'name': 'plain', 'channels': 8, 'z_dim': 8}, regularizers={'r1': 0.1}, total_kimg=0.024)
    return tmp_path


def test_a_loss_and_a_network_of_a_users_own(user):
    done = imago_command('train', 'mine.yaml', 'total_kimg=0.012', '--gpus', '2', cwd=user)
    assert done.returncode == 0 and 'network plain, loss soft_hinge' in done.stdout, done.stderr
    assert imago_command('train', 'mine.yaml', '--gpus', '2', cwd=user).returncode == 0
    done = imago_command('train', 'mine.yaml', 'run_dir=whole', '--gpus', '2', cwd=user)
    assert done.returncode == 0, done.stderr
    assert not differing(*(read_checkpoint(user / name / 'checkpoints' / '000000000024') for name in ('run', 'whole')))
    both = 'my_losses,my_networks'
    for words in (['sample', 'run', '--out', 'samples', '--seeds', '0-1'], ['export', 'run', 'export']):
        refused = imago_command(*words, cwd=user)
        assert refused.returncode == 2 and 'needs the plugin my_losses, which is not imported unasked' in refused.stderr
        assert imago_command(*words, cwd=user, plugins=both).returncode == 0
    refused = imago_command('sample', 'export', '--out', 'again', cwd=user)
    assert refused.returncode == 2 and 'IMAGO_PLUGINS=my_losses' in refused.stderr and not (user / 'again').exists()
    done = imago_command('sample', 'export', '--out', 'again', '--seeds', '0-1', cwd=user, plugins=both)
    assert done.returncode == 0 and len(list((user / 'again').iterdir())) == 2, done.stderr


@pytest.mark.parametrize('plugins, told', [
    ('[no_such_module]', 'no_such_module cannot be imported .ModuleNotFoundError'),
    ('[broken]', 'broken cannot be imported .ZeroDivisionError'),
    ('[os; import sys]', 'it is no name of a module'), ('[../x]', 'it is no name of a module')])
def test_what_is_no_plugin_is_refused(user, monkeypatch, plugins, told):
    (user / 'broken.py').write_text('1 / 0\n')
    monkeypatch.chdir(user)
    with pytest.raises(ValueError, match=told):
        load_config('demo', [f'plugins={plugins}'])


def test_names_are_taken_once():
    for register, told in [
            (lambda: imago.register_loss('hinge', max, min), 'there is a loss hinge already'),
            (lambda: imago.register_network(type('Other', (load_config('demo').network.__class__,), {}), object, object),
             'there is a network r3gan already')]:
        with pytest.raises(ValueError, match=told):
            register()
