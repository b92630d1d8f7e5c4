"""The script of the first minutes on a GPU runs to its end, so that these are not spent on errors of typing."""

import json
import subprocess
import sys
from pathlib import Path

FIRST = Path(__file__).with_name('first.py')
PEER = '''
def prepare(name, batch, device):
    return lambda: None
'''


def test_every_part_runs(tmp_path):
    (tmp_path / 'peer.py').write_text(PEER)
    command = [sys.executable, str(FIRST), str(tmp_path / 'out'), '--tiny', '--peer', str(tmp_path / 'peer.py')]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    tables = json.loads((tmp_path / 'out/first.json').read_text())
    assert {'Machine', 'Values', 'Exactness', 'Kernels', 'Steps', 'Ways', 'Resume', 'Seconds'} <= tables.keys()
    assert all(row['twice'] == 'same bits' for row in tables['Exactness'])
    assert [row['configuration'] for row in tables['Steps']] == ['stylegan2-256', 'stylegan2-256, peer']
    assert {row['resumed'] for row in tables['Resume']} | {row['second start'] for row in tables['Resume']} == {'same bits'}
    assert '## Steps\n\n| configuration |' in (tmp_path / 'out/first.md').read_text()


def test_it_says_what_is_missing(tmp_path):
    run = subprocess.run([sys.executable, str(FIRST), str(tmp_path), '--peer', 'nowhere.py'], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.endswith('--peer nowhere.py: there is no such file\n')
