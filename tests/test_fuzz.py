"""Odd arguments, configurations and damaged files, drawn by seeds: each command ends well, or with one line and status 2.

IMAGO_FUZZ=0:2000 takes other seeds than the suite's. A failure names its seed, the arguments, and what was damaged.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import zipfile
from concurrent.futures import Executor, Future
from pathlib import Path

import psutil
import pytest
import yaml
from fuzz_for_tests import Draws, damage, listing
from runs_for_tests import tiny_config, tiny_tree, train_here
from shards_for_tests import picture, write_dataset

import launch.cli
import launch.doctor
import launch.kubernetes
import launch.local
import launch.node
import launch.slurm
import trainer.tools.compare
import trainer.tools.cost
import trainer.tools.evaluate
import trainer.tools.export
import trainer.tools.pack
import trainer.tools.plot
import trainer.tools.sample
import trainer.tools.verify
import trainer.train
from trainer import dist

FIRST, LAST = map(int, os.environ.get('IMAGO_FUZZ', '0:200').split(':'))
PATIENCE = 100          # seconds, after which a case is taken for one that never ends
MOST_MEMORY = 4 << 30   # bytes more than before
MOST_TOLD = 2000        # characters
TOLD_BEFORE = ('warning: ', 'imago pack: ', "Inception's weights")   # lines that may come before the error
STATUSES = (0, None, 1, 2, launch.node.STOPPED)

SOURCES = ['run', 'export', 'run/checkpoints/000000000048']
DATA = ['shards/dataset.json', 'shards/shard-00000.tar']
LOGS = ['run/config.yaml', 'run/stats.jsonl', 'run/metrics.jsonl']
CHECKPOINT = [f'run/checkpoints/000000000048/{name}' for name in ('complete.json', '.metadata', '__0_0.distcp')]
EXPORT = ['export/generator.json', 'export/generator.safetensors']
PACKED = ['pictures.zip', 'pictures/a/0.png', 'labels.csv', 'labels.json']


def job(rng):
    return ['c.yaml', *rng.overrides(2), *rng.options(2, nodes='1 2', gpus_per_node='1 2', name='job', cpus_per_gpu='1',
                                                      out='job.txt c.yaml')]


# name -> (main, arguments, files that may be damaged)
COMMANDS = {
    'train': (trainer.train.main, lambda rng: ['c.yaml', *rng.overrides(), *rng.choice([['--dry-run'], []])], [*DATA, 'c.yaml']),
    'pack': (trainer.tools.pack.main, lambda rng: [
        rng.pick('pictures', 'pictures.zip', 'shards'), rng.pick('out', 'run'), *rng.options(
            1, workers='1', labels='labels.csv labels.json', resolution='8 16x8', fit='pad', quality='90', shard_mb='0.01',
            seed='1', max_pixels='1000', encoding='png', background='red', channels='1', overwrite='', strict='', no_labels='')],
        [*DATA, *PACKED]),
    'pack --verify': (trainer.tools.verify.main, lambda rng: ['--verify', rng.pick('shards')], DATA),
    'sample': (trainer.tools.sample.main, lambda rng: [rng.pick(*SOURCES), *rng.options(
        2, out='out', seeds='0-3', psi='0.7', truncation='0.5', columns='2', standing_batches='1', grid='',
        **{'class': '1 class0'})], [*CHECKPOINT, *EXPORT]),
    'export': (trainer.tools.export.main, lambda rng: [rng.pick(*SOURCES), rng.pick('out'), *rng.options(standing_batches='1')],
               [*CHECKPOINT, *EXPORT]),
    'evaluate': (trainer.tools.evaluate.main, lambda rng: [rng.pick(*SOURCES, 'pictures', 'shards'), *rng.options(
        5, images='10', reals='10', metrics='kid', device='cpu', data='shards pictures', seed='1', psi='0.7', truncation='2',
        resizer='legacy', extractor='effnet_lite0 c.yaml', extractor_size='64', extractor_sha256='0' * 64, json='')],
        [*LOGS, *CHECKPOINT, *EXPORT, *DATA]),
    'plot': (trainer.tools.plot.main, lambda rng: [rng.pick('run'), *rng.options(1, out='curves.png', keys='loss/*', hours='')],
             LOGS),
    'compare': (trainer.tools.compare.main, lambda rng: ['run', *rng.choice([[], [rng.pick('run')]]),
                                                         *rng.options(best='kid_x', json='')], [*LOGS, *CHECKPOINT]),
    'cost': (trainer.tools.cost.main, lambda rng: ['c.yaml', 'data.resolution=16', *rng.overrides(2), *rng.options(
        2, nodes='1 2', gpus_per_node='1 2', classes='3', channels='1', tflops='10', sustained='0.5', memory_gb='80',
        link_gbit='100', gpu='a100')], ['c.yaml']),
    'launch slurm': (launch.slurm.main, lambda rng: job(rng) + rng.options(
        time='24:00:00', partition='gpu', account='lab', notice='100', container='a/b:1', mount='/data', venv='.'), ['c.yaml']),
    'launch kubernetes': (launch.kubernetes.main, lambda rng: [*job(rng), f'run_dir={rng.pick("/lab/run", "new")}', *rng.options(
        2, image='a/b:1', pvc='lab:/lab x:/lab/x', namespace='lab', grace='100', shm='1Gi')], ['c.yaml']),
    'launch node': (launch.node.main, lambda rng: ['c.yaml', *rng.overrides(1), *rng.options(
        3, nodes='1 1:2', gpus_per_node='1', rendezvous='localhost:29400', id='job')], ['c.yaml']),
    'launch local': (launch.cli.launch, lambda rng: ['local', 'c.yaml', *rng.options(1, nproc='2')], []),
    'doctor': (launch.doctor.main, lambda rng: [rng.pick('x')], []),
}
ORDER = [*COMMANDS, 'train', 'train', 'train', 'sample', 'evaluate', 'launch slurm', 'launch kubernetes', 'compare']


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Good inputs of every command, under relative names."""
    folder = tmp_path_factory.mktemp('inputs')
    write_dataset(folder / 'shards', (13, 10, 7), classes=3, size=16)
    dist.init('cpu')
    with contextlib.chdir(folder):
        data = {'path': 'shards', 'lanes': 12, 'workers': 0, 'conditional': True}
        train_here(tiny_config(Path('shards'), Path('run'), data=data))
        assert trainer.tools.export.main(['run', 'export']) == 0
    protocol = {'extractor': 'x', 'weights_sha256': 'ab', 'resizer': 'clean', 'dataset': 'd', 'resolution': [16, 16], 'fakes': 10,
                'reals': 10, 'seed': 0, 'psi': 1.0, 'truncation': None}
    (folder / 'run' / 'metrics.jsonl').write_text(json.dumps({
        'nimg': 48, 'time': 0, 'values': {'kid_x': 0.5}, 'intervals': {'kid_x': [0.4, 0.6]}, 'protocol': protocol}) + '\n')
    (folder / 'c.yaml').write_text(yaml.safe_dump(tiny_tree(Path('shards'), Path('new'))))
    labels = {f'{"ab"[number % 2]}/{number}.png': number % 3 for number in range(12)}
    with zipfile.ZipFile(folder / 'pictures.zip', 'w') as archive:
        for number, name in enumerate(labels):
            archive.writestr(name, picture(number))
            (folder / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'pictures' / name).write_bytes(picture(number))
    (folder / 'labels.csv').write_text(''.join(f'{name},{label}\n' for name, label in labels.items()))
    (folder / 'labels.json').write_text(json.dumps(labels))
    return folder


class Here(Executor):
    """In place of processes, which would take seconds to start."""

    def __init__(self, workers, initializer=None):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class NeverEnds(BaseException):
    pass


def never_ends(number, frame):
    raise NeverEnds


@pytest.fixture
def contained(monkeypatch, tmp_path):
    """Nothing trains, starts a process, or takes time or memory without end."""
    monkeypatch.setattr(trainer.train, 'train', lambda run: trainer.train.FINISHED)
    monkeypatch.setattr(trainer.tools.pack, 'ProcessPoolExecutor', Here)
    for module in (launch.node, launch.local):
        monkeypatch.setattr(module, 'run_torchrun', lambda ranks, arguments: 0)
    monkeypatch.setattr(os, 'execv', lambda *arguments: None)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: type('Memory', (), {'total': 1 << 29}))
    monkeypatch.setenv('IMAGO_METRICS_CACHE', str(tmp_path / 'cache'))
    before, limits = signal.signal(signal.SIGALRM, never_ends), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MOST_MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('number', range(FIRST, LAST))
def test_a_command_ends_well_or_says_what_is_wrong(inputs, contained, tmp_path, monkeypatch, capsys, number):
    rng, name = Draws(number), ORDER[number % len(ORDER)]
    main, make, files = COMMANDS[name]
    damaging = bool(files) and rng.random() < 0.5
    rng.odd = 0.0 if damaging else 0.4
    folder = tmp_path / 'here'
    shutil.copytree(inputs, folder, symlinks=True)
    os.mkfifo(folder / 'pipe')
    monkeypatch.chdir(folder)
    arguments = make(rng)
    reached = {word.split('=')[-1].split('/')[0] for word in arguments} | {'shards'}
    files = [path for path in files if path.split('/')[0] in reached]
    damaged = damage(rng, Path(rng.choice(files))) if damaging and files else 'nothing'
    case = f'IMAGO_FUZZ={number}:{number + 1}, damaged {damaged}: imago {name} {" ".join(map(ascii, arguments))}'[:4000]
    before = listing(folder)
    monkeypatch.setattr(sys, 'argv', ['imago', *arguments])
    capsys.readouterr()
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        raise AssertionError(f'{type(error).__name__}: {str(error)[:500]}; {case}') from error
    told = capsys.readouterr().err
    assert status in STATUSES, f'status {status}; {case}'
    assert 'Traceback' not in told and not (folder / 'harm').exists(), f'{told[-2000:]}; {case}'
    if status == 2 or status == 1 and name != 'pack --verify':    # whose 1 says that there is damage
        check_refusal(name, told, case)
        after = listing(folder)
        assert after.keys() == before.keys(), f'left behind: {after.keys() ^ before.keys()}; {told[-500:]}; {case}'
        assert after == before, f'changed: {[path for path in after if after[path] != before[path]]}; {case}'


def check_refusal(name, told, case):
    """One line under the name of the command, after those that tell of progress."""
    prog = f'imago {name.split(" ")[0]}'
    lines = [line for line in told.replace('\r', '\n').split('\n') if line and '%|' not in line]
    errors = [line for line in lines if line.startswith(prog) and ': error: ' in line]
    assert lines and errors == lines[-1:] and len(errors[0]) < MOST_TOLD, f'{told[-3000:]!r}; {case}'
    assert all(line.startswith(TOLD_BEFORE) for line in lines[:-1]), f'{told[-3000:]!r}; {case}'
