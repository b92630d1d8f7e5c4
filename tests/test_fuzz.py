"""Seeds draw odd arguments, configurations and damaged files. Each command must end well, or with one line and status 2.

IMAGO_FUZZ=0:2000 takes other seeds than the suite's; a failure names its own, the arguments and what was damaged.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import sys
import zipfile
from concurrent.futures import Executor, Future
from pathlib import Path

import psutil
import pytest
import yaml
from runs_for_tests import tiny_config, tiny_tree, train_here
from shards_for_tests import picture, write_dataset

import imago.launch.cli
import imago.launch.doctor
import imago.launch.kubernetes
import imago.launch.local
import imago.launch.node
import imago.launch.slurm
import imago.launch.torchrun
import imago.trainer.pack.command
import imago.trainer.tools.compare
import imago.trainer.tools.cost
import imago.trainer.tools.evaluate
import imago.trainer.tools.export
import imago.trainer.tools.plot
import imago.trainer.tools.sample
import imago.trainer.tools.train
import imago.trainer.train  # noqa: F401
from imago import launch, trainer
from imago.trainer.config.load import Config, _known_keys
from imago.trainer.ranks import dist

FIRST, LAST = map(int, os.environ.get('IMAGO_FUZZ', '0:200').split(':'))
PATIENCE = 90    # seconds after which a case is taken for one that never ends, on a busy machine too
MOST_MEMORY = 4 << 30
MOST_TOLD = 2000  # characters
NOISE = ('warning: ', 'imago pack: skipped', 'imago pack: labels', 'guard: ', "Inception's weights", 'not alike: ', 'evaluating ')   # lines that may come before the error

WORDS = ['', ' ', 'x', 'X y', 'a\nb', 'a\rb\x1b[2J', '\udcff', 'x' * 5000, '~', '~/x', '-1', '0', '1', '3', '7', '12', '1e3', '1e400',
         'nan', 'inf', '-inf', '9' * 40, '9' * 5000, '1_0', '\u0663', '0x10', '1:30', '2024-01-01', 'null', 'true', 'off', 'no', '[]', '{}',
         '[1, 2]', '[' * 3000, '{a: ' * 500, '!!python/object/apply:os.mkdir [harm]', '!!timestamp x', '!!bool x', '&a [*a, *a]',
         '"\\UFFFFFFFF"', '"a\\nb"', '{start: 1, end: 0, kimg: 1}', '{8: 4}', 'a=b', '=', '%s%n{}', '$(touch harm)', '`touch harm`',
         "'; touch harm; '", '"', "'", '\\', '../x', './x', 'c.yaml', 'run', 'shards', 'export', 'pipe', 'nowhere/x', '/dev/null', '/dev/zero',
         '/proc/self/mem', 'PIPE:touch harm {}', ' pipe:touch harm', 'scp://x/y', 'x{0..999999999}.tar', 'a:/etc,/b', '\u202e', '\u2028',
         'cpu', 'fid', 'kid', 'hinge', 'wgan', 'fsdp', 'zero', 'dcgan', 'biggan', 'pggan', 'r3gan', 'began', 'ada', '16', '16x16', '24',
         '0-3', '0-999999999', '1,2,3', '99999', '0.5', '1e-9', '-0', '#x', '- x', 'a: b: c', '*', '@', '--', '-h?', 'x' * 300, 'UTF\u00fc\U0001f600']
RAW = ['null', 'true', '[]', '{}', '""', '"x"', '-1', '0', '1', '1e400', '-1e400', 'NaN', '9' * 30, '9' * 5000, '0.5', '"' + 'x' * 3000 + '"',
       '[' * 5000 + ']' * 5000, '{"a":' * 3000 + '1' + '}' * 3000, '"../x"', '"/etc/passwd"', '"a\\nb"', '[1]', '{"a": 1}', '"\\ud800"', '1e15']


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Good inputs of every command, with relative names."""
    folder = tmp_path_factory.mktemp('inputs')
    write_dataset(folder / 'shards', (13, 10, 7), classes=3, size=16)
    dist.init('cpu')
    with contextlib.chdir(folder):
        train_here(tiny_config(Path('shards'), Path('run'), data={'path': 'shards', 'lanes': 12, 'workers': 0, 'conditional': True}))
        assert trainer.tools.export.main(['run', 'export']) == 0
    line = {'nimg': 48, 'time': 0, 'values': {'kid_x': 0.5}, 'intervals': {'kid_x': [0.4, 0.6]},
            'protocol': {'extractor': 'x', 'weights_sha256': 'ab', 'resizer': 'clean', 'dataset': 'd', 'resolution': [16, 16], 'fakes': 10,
                         'reals': 10, 'seed': 0, 'psi': 1.0, 'truncation': None}}
    (folder / 'run' / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    (folder / 'c.yaml').write_text(yaml.safe_dump(tiny_tree(Path('shards'), Path('new'))))
    with zipfile.ZipFile(folder / 'pictures.zip', 'w') as archive:
        for number in range(12):
            name = f'{"ab"[number % 2]}/{number}.png'
            archive.writestr(name, picture(number))
            (folder / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'pictures' / name).write_bytes(picture(number))
    (folder / 'labels.csv').write_text(''.join(f'{"ab"[number % 2]}/{number}.png,{number % 3}\n' for number in range(12)))
    (folder / 'labels.json').write_text(json.dumps({f'{"ab"[number % 2]}/{number}.png': number % 3 for number in range(12)}))
    return folder


DATA = ['shards/dataset.json', 'shards/shard-00000.tar']
RUN = ['run/config.yaml', 'run/stats.jsonl', 'run/metrics.jsonl'] + [
    f'run/checkpoints/000000000048/{file}' for file in ('complete.json', '.metadata', '__0_0.distcp')]
EXPORT = ['export/generator.json', 'export/generator.safetensors']
KEYS = _known_keys(Config)


class Draws(random.Random):
    """Draws odd words with the chance `odd`, and else good ones, so that commands get as far as the damaged files."""

    odd = 0.0

    def pick(self, *good):
        return self.choice(WORDS if self.random() < self.odd else good)

    def overrides(self, most=3):
        return [self.choice([f'{self.choice(KEYS)}={self.choice(WORDS)}', f'{self.choice(KEYS)}.x={self.choice(WORDS)}', self.choice(WORDS)])
                if self.random() < self.odd else self.choice(GOOD) for _ in range(self.randint(0, most))]

    def options(self, least=0, **good):
        """The first `least` of the options, and a few of the others."""
        found = []
        for number, (name, values) in enumerate(good.items()):
            if number < least or self.random() < 0.3:
                value, name = self.pick(*values.split(' ')), '--' + name.replace('_', '-')
                found.append([name] if not values else [f'{name}={value}'] if self.random() < 0.3 else [name, value])
        self.shuffle(found)
        return [word for words in found for word in words]


GOOD = ['batch=24', 'micro_batch=6', 'data.lanes=6', 'data.resolution=8', 'data.conditional=true', 'network.mbstd_group=2', 'seed=1',
        'network.low_precision=bf16', 'network.low_precision_blocks=2', 'network.channel_base=64', 'network.w_dim=8', 'augment.name=ada',
        'augment.name=diffaugment', 'augment.groups=[blit,geometry,color,filter,noise,cutout]', 'augment.p=0.5', 'guard.action=warn',
        'guard.action=off', 'loss.name=hinge', 'loss.name=relativistic', 'loss.auxiliary=1', 'loss.d_steps=2', 'log.grid=[1, 1]',
        'log.singular_values=true', 'regularizers.normalise=spectral', 'regularizers.normalise=stable_rank', 'regularizers.normalise_g=true',
        'regularizers.r1=0', 'regularizers.path_length=0', 'regularizers.lecam=0.1', 'regularizers.orthogonal=1e-4',
        'parallel.strategy=fsdp', 'parallel.strategy=zero', 'evaluate.interval_kimg=0.012', 'evaluate.metrics=[kid, intra_fid]',
        'optim.g_lr={start: 1e-3, end: 0, kimg: 1}', 'optim.betas=[0, 0.9]', 'run_dir=run', 'device=cpu', 'compile=true', 'data.flip=true',
        'network=null', 'network={name: dcgan}', 'network={name: pggan}', 'network={name: began}', 'game.name=began', 'game={name: mad_gan, generators: 3}', 'loss.name=wgan',
        'network={name: r3gan, group_size: 4}', 'network={name: sngan, channels: 8}', 'growth={start_resolution: 8}', 'data.path=nowhere',
        'checkpoint.best=kid', 'guard.data=shards', 'data.workers=0']


def job(rng):
    return ['c.yaml', *rng.overrides(2), *rng.options(2, nodes='1 2', gpus_per_node='1 2', name='job', cpus_per_gpu='1', out='job.txt c.yaml')]


SOURCES = ['run', 'export', 'run/checkpoints/000000000048']
# name -> (main, arguments, files that may be damaged)
COMMANDS = {
    'train': (trainer.tools.train.main, lambda rng: ['c.yaml', *rng.overrides(), *rng.choice([['--dry-run'], []])], [*DATA, 'c.yaml']),
    'pack': (trainer.pack.command.main, lambda rng: [rng.pick('pictures', 'pictures.zip', 'shards'), rng.pick('out', 'run'), *rng.options(
        1, workers='1', labels='labels.csv labels.json', resolution='8 16x8', fit='pad', quality='90', shard_mb='0.01', seed='1', max_pixels='1000',
        encoding='png', background='red', channels='1', overwrite='', strict='', no_labels='')],
        [*DATA, 'pictures.zip', 'pictures/a/0.png', 'labels.csv', 'labels.json']),
    'sample': (trainer.tools.sample.main, lambda rng: [rng.pick(*SOURCES), *rng.options(
        2, out='out', seeds='0-3', psi='0.7', truncation='0.5', columns='2', standing_batches='1', grid='',
        condition='0.5 -1,2 one', **{'class': '1 class0'})],
        [*RUN, *EXPORT]),
    'export': (trainer.tools.export.main, lambda rng: [rng.pick(*SOURCES), rng.pick('out'), *rng.options(standing_batches='1')], [*RUN, *EXPORT]),
    'evaluate': (trainer.tools.evaluate.main, lambda rng: [rng.pick(*SOURCES, 'pictures', 'shards'), *rng.options(
        5, images='10', reals='10', metrics='kid', device='cpu', data='shards pictures', seed='1', psi='0.7', truncation='2', resizer='legacy',
        extractor='effnet_lite0 c.yaml', extractor_size='64', extractor_sha256='0' * 64, json='')], [*RUN, *EXPORT, *DATA]),
    'plot': (trainer.tools.plot.main, lambda rng: [rng.pick('run'), *rng.options(1, out='curves.png', keys='loss/*', hours='')], RUN[:3]),
    'compare': (trainer.tools.compare.main, lambda rng: ['run', *rng.choice([[], [rng.pick('run')]]), *rng.options(best='kid_x', json='')], RUN),
    'cost': (trainer.tools.cost.main, lambda rng: ['c.yaml', 'data.resolution=16', *rng.overrides(2), *rng.options(
        2, nodes='1 2', gpus_per_node='1 2', classes='3', channels='1', tflops='10', sustained='0.5', memory_gb='80', link_gbit='100', gpu='a100')],
        ['c.yaml']),
    'launch slurm': (launch.slurm.main, lambda rng: job(rng) + rng.options(
        time='24:00:00', partition='gpu', account='lab', notice='100', container='a/b:1', mount='/data', venv='.'), ['c.yaml']),
    'launch kubernetes': (launch.kubernetes.main, lambda rng: [*job(rng), f'run_dir={rng.pick("/lab/run", "new")}', *rng.options(
        2, image='a/b:1', pvc='lab:/lab x:/lab/x', namespace='lab', grace='100', shm='1Gi')], ['c.yaml']),
    'launch node': (launch.node.main, lambda rng: ['c.yaml', *rng.overrides(1), *rng.options(
        3, nodes='1 1:2', gpus_per_node='1', rendezvous='localhost:29400', id='job')], ['c.yaml']),
    'launch local': (lambda words: launch.cli.launch(['local', *words]), lambda rng: ['c.yaml', *rng.options(1, nproc='2')], []),
    'doctor': (launch.doctor.main, lambda rng: [rng.choice(WORDS[1:])], []),
}
ORDER = [*COMMANDS, 'train', 'train', 'train', 'sample', 'evaluate', 'launch slurm', 'launch kubernetes', 'compare']


def damage(rng, path):
    """Damage one file, and say how."""
    content, kind = path.read_bytes(), rng.choice(['flip', 'cut', 'grow', 'empty', 'junk', 'value', 'value', 'value', 'folder', 'pipe', 'zero', 'gone'])
    if kind == 'value' and path.suffix in ('.json', '.jsonl', '.yaml', '.csv'):
        return f'{path}: {damage_value(rng, path, content.decode())}'
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'zero':
        path.symlink_to('/dev/zero')
    elif kind != 'gone':
        place = rng.randrange(len(content))
        path.write_bytes({'cut': content[:place], 'empty': b'', 'junk': rng.randbytes(200),
                          'grow': content[:place] + rng.randbytes(9) + content[place:]}.get(
                              kind, content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:]))
    return f'{path}: {kind}'


def damage_value(rng, path, text):
    """Put something else in the place of one value."""
    if path.suffix in ('.yaml', '.csv'):
        lines = text.splitlines(keepends=True)
        number, value = rng.randrange(len(lines)), rng.choice(WORDS)
        lines[number] = re.sub(r'[^:,\n]*$', lambda _: ' ' + value, lines[number], count=1) if path.suffix == '.yaml' else f'{value},{value}\n'
        path.write_text(''.join(lines), errors='surrogateescape')
        return f'line {number + 1} with {value[:100]!r}'
    lines = text.splitlines() if path.suffix == '.jsonl' else [text]
    number, value = rng.randrange(len(lines)), rng.choice(RAW)
    tree = [json.loads(lines[number])]
    below, key = tree, 0
    while isinstance(below[key], (dict, list)) and below[key] and rng.random() < 0.8:
        below = below[key]
        key = rng.choice(list(below) if isinstance(below, dict) else range(len(below)))
    below[key] = '@@'
    lines[number] = json.dumps(tree[0]).replace('"@@"', value)
    path.write_text('\n'.join(lines) + '\n')
    return f'line {number + 1}, {key} with {value[:100]}'


def listing(folder):
    def content(path):
        mode = path.lstat().st_mode
        return path.read_bytes() if stat.S_ISREG(mode) else os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob('*'))}


class Here(Executor):
    """This executor takes the place of processes, which would take seconds to start."""

    def __init__(self, workers, initializer=None):
        pass

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class Hangs(BaseException):
    pass


@pytest.fixture
def contained(monkeypatch, tmp_path):
    """Nothing trains, and nothing starts a process."""
    def hang(*_):
        raise Hangs
    monkeypatch.setattr(trainer.train, 'train', lambda run: trainer.train.FINISHED)
    monkeypatch.setattr(trainer.pack.command, 'ProcessPoolExecutor', Here)
    for module in (launch.node, launch.torchrun):
        monkeypatch.setattr(module, 'run_torchrun', lambda ranks, arguments: 0)
    monkeypatch.setattr(os, 'execv', lambda *_: None)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: type('Memory', (), {'total': 2 ** 29}))
    monkeypatch.setenv('IMAGO_METRICS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', os.environ['PATH'])
    before, limits = signal.signal(signal.SIGALRM, hang), resource.getrlimit(resource.RLIMIT_AS)
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
    used = {word.split('=')[-1].split('/')[0] for word in arguments}
    reached = [path for path in files if path.split('/')[0] in used | {'shards'}]
    damaged = damage(rng, Path(rng.choice(reached))) if damaging and reached else 'nothing'
    case = f'IMAGO_FUZZ={number}:{number + 1}, damaged {damaged}: imago {name} {" ".join(map(ascii, arguments))}'
    before = listing(folder)
    monkeypatch.setattr(sys, 'argv', [f'imago {name}', *arguments])
    capsys.readouterr()
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        raise AssertionError(f'{type(error).__name__}: {str(error)[:500]}; {case[:3000]}') from error
    told = capsys.readouterr().err
    assert status in (0, None, 1, 2, launch.node.STOPPED), f'status {status}; {case}'
    assert not (folder / 'harm').exists(), case
    assert 'Traceback' not in told, f'{told[-1000:]}; {case}'
    if status in (1, 2):
        lines = [line for line in told.replace('\r', '\n').split('\n') if line and not line.startswith(NOISE) and '%|' not in line]
        assert len(lines) == 1 and lines[0].startswith(f'imago {name.split()[0] if name == "launch local" and "UTF-8" in told else name}: error: '), f'{told[:3000]!r}; {case}'
        assert len(lines[0]) < MOST_TOLD, f'{len(lines[0])} characters; {case}'
        after = listing(folder)
        assert after.keys() == before.keys(), f'left behind: {after.keys() ^ before.keys()}; {told} {case}'
        assert after == before, f'changed: {[path for path in after if after[path] != before[path]]}; {case}'
