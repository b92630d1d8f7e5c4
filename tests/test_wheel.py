"""A wheel holds one package, works beside others that are called as our rooms are, and serves any system."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOREIGN = ('kernels', 'trainer')     # names of packages on the registry, Hugging Face's and coqui's among them


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'      # from what git knows, as `build/` of an older try would be packed too
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True,
                           check=True).stdout.decode().split('\0')
    for name in filter(None, names):
        if not name.startswith('tests/') and os.path.lexists(ROOT / name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', folder, source],
                   check=True, capture_output=True)
    return next(folder.glob('*.whl'))


def test_it_holds_one_package_for_any_system(wheel):
    assert re.fullmatch(r'imago_gan-[\d.]+-py3-none-any\.whl', wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = archive.read(next(name for name in names if name.endswith('.dist-info/METADATA'))).decode()
    tops = {name.split('/')[0] for name in names if '.dist-info/' not in name}
    assert tops == {'imago'} and any(re.search(r'\.dist-info/(licenses/)?LICENSE$', name) for name in names)
    ours = subprocess.run(['git', 'ls-files', 'trainer', 'kernels', 'launch', 'configs'], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout.split()
    assert {f'imago/{name}' for name in ours if Path(name).suffix != '.md' and (ROOT / name).exists()} <= set(names)
    assert 'imago/py.typed' in names
    fields = message_from_string(about)
    assert fields['Description-Content-Type'] == 'text/markdown' and '# Imago' in fields.get_payload()
    assert fields['Author'] and 'Programming Language :: Python :: 3.13' in fields.get_all('Classifier')


def test_no_hint_names_a_distribution_that_is_not_ours_on_the_registry():
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    texts = {name: (ROOT / name).read_text(errors='replace') for name in files
             if Path(name).suffix in ('.py', '.md', '.yaml', '') and (ROOT / name).is_file()}
    hint = re.compile(r'pip3? install[^\n]{0,40}imago-gan')
    assert len(texts) > 200 and not [name for name, text in texts.items() if hint.search(text)]


def foreign(folder, name):
    """Make a wheel of another distribution that holds a package of this name."""
    path = folder / f'{name}-9.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{name}/__init__.py', 'theirs = True\n')
        archive.writestr(f'{name}/config.py', 'theirs = True\n')
        archive.writestr(f'{name}-9.0.dist-info/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n')
        archive.writestr(f'{name}-9.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{name}-9.0.dist-info/RECORD', '')
    return path


@pytest.mark.parametrize('first', ['ours', 'theirs'])
def test_it_works_beside_packages_of_the_same_names_as_our_rooms(wheel, shards, tmp_path, first):
    theirs = [foreign(tmp_path, name) for name in FOREIGN]
    there = tmp_path / 'there'
    for path in ([wheel, *theirs] if first == 'ours' else [*theirs, wheel]):
        subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--upgrade', '--target',
                        there, path], check=True, capture_output=True)
    (tmp_path / 'trainer.py').write_text('raise SystemExit("a file of the user")\n')    # where they start their runs

    def run(*words):
        code = f'import sys; sys.path.insert(0, {str(there)!r}); from imago.launch.cli import main; sys.exit(main())'
        done = subprocess.run([sys.executable, '-P', '-c', code, *words], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {'PYTHONPATH': str(there), 'PYTHONSAFEPATH': '1'})
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert 'torch' in run('doctor')
    run('train', 'stylegan2-64', f'data.path={shards}', 'run_dir=run', 'data.resolution=16', 'batch=4', 'micro_batch=4',
        'total_kimg=0.008', 'network.channel_base=64', 'network.channel_max=8', 'network.z_dim=8', 'network.w_dim=8',
        'data.workers=0')
    assert (tmp_path / 'run' / 'checkpoints' / '000000000008').is_dir()
    run('sample', 'run', '--seeds', '0-1')
    assert len(list((tmp_path / 'run' / 'samples').iterdir())) == 2
    code = 'import imago, kernels, trainer, trainer.config; print(imago.__file__, kernels.theirs, trainer.config.theirs)'
    told = subprocess.run([sys.executable, '-P', '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {'PYTHONPATH': str(there)}).stdout
    assert told.split() == [str(there / 'imago' / '__init__.py'), 'True', 'True']
