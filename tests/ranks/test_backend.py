"""All ranks compute with the same kernels, and a run says with which."""

import contextlib
import io
import json
import os

from filelock import FileLock
from runs_for_tests import differing, flat, on_ranks, tiny_config, train_here, write_tiny

from imago import kernels
from imago.kernels import build, library
from imago.trainer.ranks import dist
from imago.trainer.ranks.backend import agree_on_kernels
from imago.trainer.runs.checkpoint import SEAL, list_checkpoints
from imago.trainer.start import prepare
from imago.trainer.tools.train import main
from imago.trainer.train import train

HOW = {'none at all': '', 'busy': 'another process has been building', 'broken': "'no-such-compiler', which CXX names, is missing"}


def train_without_kernels(shards, folder):
    """Train where rank 1 gets no compiled kernels, and where none are asked for: {how: (state, what was printed)}."""
    ends = {}
    held = FileLock(folder / f'imago_cpu-{build.plan("cpu").key}.lock')
    library.WAIT_SECONDS = 0
    for how in HOW:
        library._backends.clear()
        os.environ['IMAGO_KERNELS'] = 'reference' if how == 'none at all' else 'auto'
        if dist.rank() == 1 and how == 'busy':
            os.environ['IMAGO_KERNELS_CACHE'] = str(folder)
            held.acquire()
        if dist.rank() == 1 and how == 'broken':
            os.environ['CXX'] = 'no-such-compiler'
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run = prepare(tiny_config(shards, folder / how, total_kimg=0.024))
            train(run)
        ends[how] = {name: tensor.clone() for name, tensor in flat(run.state.tree()).items()}, printed.getvalue()
    return ends


def test_one_rank_without_kernels_keeps_all_to_plain_pytorch(shards, tmp_path):
    first, second = on_ranks(2, train_without_kernels, shards, tmp_path)
    assert 'plain PyTorch serves' not in first['none at all'][1], 'it was asked for'
    for how, why in HOW.items():
        if why:
            told, = (line for line in first[how][1].splitlines() if 'plain PyTorch serves on all 2 ranks' in line)
            assert 'rank 1 has no compiled cpu kernels: ' in told and why in told and second[how][1] == ''
        assert seal_of(tmp_path / how)['kernels'].startswith('plain PyTorch (')
        assert not differing(first[how][0], first['none at all'][0]) and not differing(second[how][0], first[how][0])


def seal_of(run):
    return json.loads((list_checkpoints(run / 'checkpoints')[-1] / SEAL).read_text())


def test_a_resume_under_other_kernels_says_so(shards, tmp_path, capsys):
    dist.init('cpu')
    config = tiny_config(shards, tmp_path / 'run', total_kimg=0.024)
    train_here(config)
    compiled = library.backend('cpu')
    assert seal_of(tmp_path / 'run')['kernels'] == compiled and compiled.startswith('C++ (')
    assert 'kernels: ' not in capsys.readouterr().out
    with kernels.reference_path():
        train_here(config.model_copy(update={'total_kimg': 0.036}))
    told, = (line for line in capsys.readouterr().out.splitlines() if line.startswith('kernels: '))
    plain = compiled.replace('C++', 'plain PyTorch')
    assert told == f'kernels: {compiled} up to here, {plain} from here on, which rounds differently'
    assert seal_of(tmp_path / 'run')['kernels'] == plain and library.serves('cpu')


def test_the_name_tells_the_instruction_set(monkeypatch):
    monkeypatch.setattr(library.torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert agree_on_kernels('cpu') == 'C++ (AVX2)'


def test_strict_is_refused_in_one_line(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(library, '_backends', {'cpu': library.Backend(None, 'no compiler')})
    assert main([str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))]) == 2
    assert capsys.readouterr().err == 'imago train: error: no compiled cpu kernels, and IMAGO_KERNELS=strict: no compiler\n'
    assert not (tmp_path / 'run').exists()
