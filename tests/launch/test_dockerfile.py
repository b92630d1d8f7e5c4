"""launch/Dockerfile is checked as far as this can be done without building an image."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from imago.launch import kubernetes, slurm

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / 'launch' / 'Dockerfile'
KNOWN = {'ARG', 'FROM', 'ENV', 'WORKDIR', 'RUN', 'COPY', 'USER', 'CMD'}


def instructions():
    """Return [(word, rest)], with continued lines joined, and with the values that ARG gives."""
    text = re.sub(r'(?m)^#.*\n', '', DOCKERFILE.read_text()).replace('\\\n', ' ')
    found, given = [], {}
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        rest = re.sub(r'\$\{(\w+)\}', lambda match: given[match[1]], rest)
        if word == 'ARG':
            name, value = rest.split('=')
            given[name] = value
        found.append((word, rest))
    return found


def copied():
    """Yield (source in the checkout, target) of each path that COPY takes into the first stage."""
    for word, rest in instructions():
        if word == 'COPY' and not rest.startswith('--from='):
            *sources, target = rest.split()
            yield from ((source, target) for source in sources)


def test_all_of_it_is_understood():
    assert {word for word, _ in instructions()} <= KNOWN
    for word, rest in instructions():
        if word == 'RUN':
            assert subprocess.run(['bash', '-n'], input=rest, text=True, capture_output=True).stderr == ''


def test_both_stages_have_the_same_torch_and_one_that_imago_takes():
    first, second = [rest.split()[0] for word, rest in instructions() if word == 'FROM']
    assert first.removesuffix('-devel') == second.removesuffix('-runtime') != first    # nvcc is in the first alone
    torch = re.fullmatch(r'pytorch/pytorch:([0-9.]+)-cuda[0-9.]+-cudnn9-runtime', second)[1]
    wanted = next(need for need in map(Requirement, metadata.requires('imago-gan')) if need.name == 'torch')
    assert wanted.specifier.contains(torch)


def test_what_is_copied_is_all_that_an_installation_needs(tmp_path):
    """The links in imago/ lead to folders that are copied too, and setup.py finds what it packs."""
    for source, target in copied():
        assert (ROOT / source).exists(), f'COPY {source}: it is not there'
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', 'lib'))
        else:
            shutil.copy(ROOT / source, tmp_path / target)
    assert {link.name for link in (tmp_path / 'imago').iterdir() if link.is_dir()} == {'configs', 'kernels', 'launch', 'trainer'}
    told = subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info'], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    listed = (tmp_path / 'imago_gan.egg-info' / 'SOURCES.txt').read_text().split()
    assert {'imago/trainer/train.py', 'imago/configs/demo.yaml', 'imago/kernels/csrc/ops.cpp'} <= set(listed)


def test_it_is_run_by_a_user_who_is_not_root_and_holds_no_secret():
    *_, user = [rest for word, rest in instructions() if word == 'USER']
    assert user.isdecimal() and int(user) > 0
    words = [word for _, rest in instructions() for word in shlex.split(rest)]
    assert not [word for word in words if re.search('token|password|secret|credential|api_?key', word, re.IGNORECASE)]
    assert [rest for word, rest in instructions() if word == 'COPY' and '.' in rest.split()[:-1]] == []    # not all of a checkout


@pytest.mark.parametrize('launcher', [kubernetes, slurm])
def test_the_launchers_name_it(launcher):
    assert 'launch/Dockerfile' in launcher.parser().format_help().replace('\n', ' ')
    assert DOCKERFILE.is_file()
