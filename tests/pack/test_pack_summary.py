"""What `imago pack` advises is accepted: each command that it prints is run."""

import json
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
from packs_for_tests import folder_of, noise, run, save
from PIL import Image

from imago.trainer.config.load import Config, load_config
from imago.trainer.config.resolution import is_size
from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.data.manifest import Manifest, Shard
from imago.trainer.pack import advice
from imago.trainer.pack import summary as pack_summary
from imago.trainer.pack.advice import train_command
from imago.trainer.pack.command import main as pack
from imago.trainer.ranks import dist
from imago.trainer.start import check
from imago.trainer.tools.scoring import FolderPictures, find_pictures
from imago.trainer.tools.train import main as train


def manifest(size: tuple[int, int], samples: int, channels: int = 3) -> Manifest:
    return Manifest(size, channels, 'webp', (), (), (Shard('shard-00000.tar', 0, samples, 1, '0' * 64),))


def command_of(output: str) -> list[str]:
    """The arguments of the `imago train` command in what was printed."""
    line, = [line for line in output.splitlines() if line.startswith('next ')]
    imago, command, *arguments = shlex.split(line.removeprefix('next '))
    assert (imago, command) == ('imago', 'train')
    return arguments


@pytest.mark.parametrize('out, size, count, channels', [
    ('out', (24, 24), 1, 3), ('a b', (50, 75), 3, 1), ("it's: #1", (16, 96), 70, 3), ('2024-01-01', (25, 25), 5, 3)])
def test_the_next_command_starts(tmp_path, monkeypatch, capsys, out, size, count, channels):
    """Cases are sizes that networks make and others, fewer pictures than lanes, grey, and names that YAML or shells change."""
    monkeypatch.chdir(tmp_path)
    for seed in range(count):
        save(noise(seed, *size), tmp_path / 'in' / f'{seed}.png')
    assert run('in', out, '--channels', channels, '--encoding', 'png') == 0
    arguments = command_of(capsys.readouterr().out)
    assert train([*arguments, '--dry-run']) == 0
    shown = capsys.readouterr().out
    assert f'{count} pictures' in shown


@pytest.mark.parametrize('name', ['1e5', 'true', '~x', '[x', 'öl', "it's", 'a: b', 'x #y', ' x', 'pipe:x', '"', '!x', '\udcff'])
def test_names_come_through_the_shell_and_yaml(name):
    config = read(train_command(name, manifest((256, 256), 64)))
    assert config.data.path == (str(Path(name).absolute()) if ':' in name or '~' in name else name)


def read(command: str) -> Config:
    arguments = shlex.split(command)[2:]
    ranks = int(arguments[2]) if arguments[1] == '--gpus' else 1
    config = load_config(arguments[0], arguments[3 if ranks > 1 else 1:])
    config.check_world(ranks)
    return config


GB = 10**9


@pytest.mark.parametrize('size, samples, gpus, words', [
    ((64, 64), 30_000, (), 'stylegan2-64 data.path=out run_dir=runs/out'),
    ((256, 256), 100, (), 'stylegan2-64 data.path=out run_dir=runs/out augment.name=ada'),
    ((48, 96), 30_000, (), 'stylegan2-64 data.path=out run_dir=runs/out data.resolution=32x64 regularizers.r1=0.03'),
    ((256, 256), 30_000, (16 * GB,), 'stylegan2-256 data.path=out run_dir=runs/out micro_batch=16'),
    ((256, 256), 30_000, 8 * (16 * GB,), 'stylegan2-256 --gpus 8 data.path=out run_dir=runs/out'),
    ((256, 256), 30_000, 3 * (4 * GB,), 'stylegan2-256 --gpus 2 data.path=out run_dir=runs/out micro_batch=4'),
    ((2048, 1024), 30_000, (24 * GB,),
     'stylegan2-512 data.path=out run_dir=runs/out data.resolution=1024x512 regularizers.r1=2'),
    ((1024, 1024), 90, (8 * GB,), 'stylegan2-512 data.path=out run_dir=runs/out data.resolution=1024x1024 regularizers.r1=3 '
     'augment.name=ada micro_batch=1')])
def test_the_command_suits_the_machine_and_the_pictures(tmp_path, monkeypatch, size, samples, gpus, words):
    monkeypatch.chdir(tmp_path)
    command = train_command('out', manifest(size, samples), gpus)
    assert command == f'imago train {words}' and read(command)


def test_a_run_that_is_there_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run_dir in ('runs/out', 'runs/out-2'):
        (tmp_path / run_dir).mkdir(parents=True)
    assert ' run_dir=runs/out-3' in train_command('out', manifest((64, 64), 64))
    assert ' run_dir=runs/a-b' in train_command('x/ä: a!b/', manifest((64, 64), 64))


@pytest.mark.parametrize('options, given', [
    ([], 'data.conditional=true'), (['--no-labels'], None), (['--channels', 1, '--resolution', 24], 'data.conditional=true'),
    (['--keep-sizes'], 'data.crop=16x16'), (['--conditions', 'c.csv'], 'data.conditional=continuous'), (['--pair', 'in'], '')])
@pytest.mark.parametrize('gpus', [[], [80 * GB]])
def test_what_was_packed_can_be_trained_on(tmp_path, monkeypatch, capsys, options, given, gpus):
    """In each way of packing, also of files of 16 bits: the whole check before training passes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pack_summary, 'memory_of_gpus', lambda: gpus)
    for seed in range(8):
        height = 24 + 8 * (seed % 2) * ('--keep-sizes' in options)
        save(noise(seed, height, 24), tmp_path / 'in' / 'ab'[seed % 2] / f'{seed}.png')
    Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24) * 100).save(tmp_path / 'in' / 'a' / 'x.png')
    paths = [str(path.relative_to(tmp_path / 'in')) for path in (tmp_path / 'in').rglob('*.png')]
    (tmp_path / 'c.csv').write_text(''.join(f'{path},0.5,{len(path)}\n' for path in paths))
    assert run('in', 'out', *options) == 0
    output = capsys.readouterr().out
    if given == '':
        assert 'note      pairs are for games of two domains' in output and '\nnext' not in output
        return
    arguments = command_of(output)
    assert given in arguments if given else not [word for word in arguments if word.startswith('data.conditional')]
    monkeypatch.setattr(dist, 'world_size', lambda: 1)
    config, dataset = check(load_config(arguments[0], arguments[1:]))
    assert dataset.manifest.num_samples == 9 and config.run_dir == 'runs/out'


def test_advice_for_any_size_is_a_size_that_networks_make():
    """The advice is a command that the rules accept, or sizes to pack again at, for which there is such a command."""
    rng = random.Random(0)
    sizes = [(rng.randrange(1, most), rng.randrange(1, most)) for most in (10, 100, 1000, 16384) for _ in range(60)]
    refused = 0
    for size in [*sizes, (1, 1), (16383, 16383), (4, 5000), (500, 750)]:
        try:
            train_command('out', manifest(size, 5))
        except ValueError as error:
            refused += 1
            for text in str(error).split('--resolution ')[1].split(' or '):
                height, _, width = text.partition('x')
                assert train_command('out', manifest((int(height), int(width or height)), 5)), error
    assert 20 < refused < 220


@pytest.mark.parametrize('sizes', [((1, 1), (9, 9)), ((3, 200), (300, 40)), ((1, 1), (2, 2)), ((700, 20), (20, 700))])
def test_the_size_that_mixed_sizes_are_to_have_is_accepted(tmp_path, capsys, sizes):
    for seed, size in enumerate(sizes):
        save(noise(seed, *size), tmp_path / 'in' / f'{seed}.png')
    assert run(tmp_path / 'in', tmp_path / 'out') == 2
    side = capsys.readouterr().err.split('--resolution ')[1].strip()
    assert is_size((int(side), int(side))) and run(tmp_path / 'in', tmp_path / 'out', '--resolution', side) == 0


def test_nothing_is_advised_where_the_rules_refuse(tmp_path, capsys, monkeypatch):
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])

    def refuse(*_: object) -> None:
        raise ValueError('no such thing')

    monkeypatch.setattr(advice, 'fitting_lanes', refuse)
    assert run(tmp_path / 'in', tmp_path / 'out') == 0
    output = capsys.readouterr().out
    assert 'no such thing' in output and 'next ' not in output


def test_fewer_workers_than_one_are_not_advised(tmp_path, capsys, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    def die(*_: object) -> None:
        raise BrokenProcessPool

    folder_of(tmp_path / 'in', ['a.png'])
    monkeypatch.setattr('imago.trainer.pack.command.common_size', die)
    for workers, words in ((1, 'try a smaller --max-pixels'), (2, 'fewer than --workers 2')):
        assert pack([str(tmp_path / 'in'), str(tmp_path / 'out'), '--workers', str(workers)]) == 2
        assert words in capsys.readouterr().err


def test_evaluate_takes_pictures_beside_a_dataset_json_of_another_kind(tmp_path):
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    (tmp_path / 'in' / 'dataset.json').write_text(json.dumps({'labels': [['a.png', 0], ['b.png', 1]]}))
    found = find_pictures(str(tmp_path / 'in'), EvaluateConfig(), 10)
    assert isinstance(found, FolderPictures) and found.count == 2
    assert run(tmp_path / 'in', tmp_path / 'out', '--resolution', 32) == 0
    assert find_pictures(str(tmp_path / 'out'), EvaluateConfig(), 10).size == (32, 32)
    (Path(tmp_path) / 'in' / 'a.cls').write_text('[')
    assert find_pictures(str(tmp_path / 'in'), EvaluateConfig(), 10).count == 2, 'labels are not read'
