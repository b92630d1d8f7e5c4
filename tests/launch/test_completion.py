"""The shell completes commands, options and configurations."""

import shutil
import subprocess
import sys

import pytest

from imago.launch.cli import MODULES


def script(shell):
    done = subprocess.run([sys.executable, '-m', 'imago.launch.cli', 'completion', shell], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize('line, wanted', [
    ('imago ', set(MODULES)), ('imago tr', {'train'}), ('imago train style', {'stylegan2-256', 'stylegan1-1024'}),
    ('imago sample --ps', {'--psi', '--psi-cutoff'}), ('imago launch ', {'slurm', 'kubernetes', 'node', 'local'}),
    ('imago launch slurm --nod', {'--nodes'}), ('imago evaluate --gp', {'--gpus'}), ('imago completion ', {'bash', 'zsh'})])
def test_bash_completes(tmp_path, line, wanted):
    (tmp_path / 'imago.bash').write_text(script('bash'))
    words = [*line.split(), *([''] if line.endswith(' ') else [])]
    ask = (f'source {tmp_path}/imago.bash; COMP_WORDS=({" ".join(word or chr(39) * 2 for word in words)}); '
           f'COMP_CWORD={len(words) - 1}; _shtab_imago imago "{words[-1]}" "{words[-2]}"; printf "%s\\n" "${{COMPREPLY[@]}}"')
    done = subprocess.run(['bash', '-c', ask], capture_output=True, text=True)
    assert wanted <= set(done.stdout.split()), done.stderr


def test_zsh_reads_the_script(tmp_path):
    text = script('zsh')
    assert text.startswith('#compdef imago') and '--psi-cutoff' in text
    if shutil.which('zsh') is None:
        pytest.skip('there is no zsh here')
    (tmp_path / '_imago').write_text(text)
    assert subprocess.run(['zsh', '-n', str(tmp_path / '_imago')]).returncode == 0
