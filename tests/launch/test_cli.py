"""What a person types, and what they are told when it cannot work: one line, exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from runs_for_tests import tiny_tree, write_tiny
from shards_for_tests import write_dataset

from imago.trainer.tools.train import main

ROOT = Path(__file__).parents[2]


def imago(*arguments):
    return subprocess.run([sys.executable, '-m', 'imago.launch.cli', *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_help_version_and_doctor():
    overview = imago('--help').stdout
    for command in ('pack', 'train', 'sample', 'export', 'evaluate', 'plot', 'compare', 'cost', 'launch', 'doctor'):
        assert command in overview
    assert imago('--version').stdout.startswith('imago 0.')
    assert imago('bake').returncode == 2
    report = imago('doctor')
    assert report.returncode == 0
    for subject in ('torch', 'CPU', 'GPU', 'gloo', 'upfirdn2d', 'C++ compiler', 'disk here'):
        assert subject in report.stdout


def test_a_dry_run_tells_what_is_needed_and_makes_nothing(shards, tmp_path, capsys):
    path = str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    assert main([path, '--dry-run', 'compile=true']) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = ['device', 'pictures', 'game', 'parameters', 'ends', 'memory', 'and', 'disk', 'fits']
    assert [line.split()[0] for line in printed] == rows
    assert f'30 pictures of {shards}, shown at 16 x 16, no classes' in printed[1] and 'G ' in printed[3]
    assert main([path, '--print-config', 'optim.g_lr=0.5']) == 0
    assert yaml.safe_load(capsys.readouterr().out)['optim']['g_lr'] == 0.5
    if not torch.cuda.is_available():
        assert main([path, '--dry-run', 'device=cuda']) == 2
        assert 'torch sees no CUDA device' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('arguments, message', [
    (['no-such.yaml'], 'no configuration file no-such.yaml'),
    (['CONFIG', 'bacth=24'], 'unknown key bacth; did you mean batch?'),
    (['CONFIG', 'batch=18'], 'batch=18 is not a multiple of data.lanes=12; use batch=24'),
    (['CONFIG', 'micro_batch=5'], 'micro_batch=5'),
    (['CONFIG', 'batch=18', '--dry-run'], 'batch=18'),
    (['CONFIG', 'optim.betas=[1.5, 0.9]'], 'optim.betas.0=1.5'),
    (['CONFIG', 'data.path=nowhere'], 'nowhere'),
    (['CONFIG', 'data.resolution=18'], 'resolution'),
    (['CONFIG', 'data.resolution=32'], 'imago pack --resolution 32x32'),
    (['CONFIG', 'data.lanes=36', 'batch=36'], 'lanes'),
    (['CONFIG', 'device=cuda'], 'device=cuda'),
    (['CONFIG', 'run_dir=CONFIG'], 'is a file'),
    (['CONFIG', 'run_dir=/proc/nothing'], 'run_dir=/proc/nothing'),
    (['CONFIG', 'run_dir=CONFIG/run'], 'c.yaml is no folder'),
    (['CONFIG', f'run_dir=RUN/{"x" * 300}'], '300 bytes'),
    (['CONFIG', 'evaluate.interval_kimg=1', 'evaluate.extractor=no-such-file.pt'], 'no-such-file.pt: no such file'),
    (['CONFIG', 'evaluate.interval_kimg=1', 'evaluate.extractor=CONFIG'], 'does not work as a feature network'),
    (['CONFIG', 'evaluate.interval_kimg=1', 'evaluate.metrics=[intra_fid]'], 'intra_fid'),
    (['CONFIG', 'network.z_dim=65536', 'network.w_dim=65536', 'network.mapping_layers=64'], 'set smaller widths'),
    (['CONFIG', 'network.channel_base=4'], 'channel_base 4 leaves the finest block no channels'),
    (['CONFIG', 'network=null', 'network={name: biggan}', 'regularizers={r1: 0, path_length: 0}'], 'resolution 16x16'),
    (['CONFIG', 'guard.data=nowhere', 'guard.action=warn'], 'nowhere is no packed dataset'),
    (['CONFIG', 'growth={start_resolution: 3}', 'network=null', 'network={name: pggan}', 'regularizers={r1: 0, path_length: 0}'], 'is no stage'),
])
def test_bad_input_is_one_line_and_status_2(shards, tmp_path, capsys, arguments, message):
    path = str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    assert main([argument.replace('CONFIG', path).replace('RUN', str(tmp_path / 'run')) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith('imago train: error: ') and told.count('\n') == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {'c.yaml'}


def test_lanes_fit_a_small_dataset_unless_they_are_given(shards, tmp_path, capsys):
    path = str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    assert main([path, 'data.lanes=36', 'batch=36', '--dry-run']) == 2
    assert 'is more than the 30 pictures of the dataset; leave data.lanes out, or pack more' in capsys.readouterr().err
    assert main([path, 'data.lanes=null', 'batch=36', '--dry-run']) == 0


def test_a_conditional_model_needs_labels(tmp_path, capsys):
    data = write_dataset(tmp_path / 'plain', (20,), size=16)
    path = write_tiny(data, tmp_path / 'run', tmp_path / 'c.yaml')
    assert main([str(path), 'data.conditional=true']) == 2
    assert 'has no labels' in capsys.readouterr().err


def test_several_ranks_tell_an_error_once(shards, tmp_path):
    tree = tiny_tree(shards, tmp_path / 'run') | {'batch': 12, 'micro_batch': 12}
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(tree))
    told = imago('train', tmp_path / 'c.yaml', '--gpus', 2)
    assert told.returncode == 2
    assert told.stderr.startswith('imago train: error: batch=12 is not a multiple of 2 ranks x micro_batch=12; use batch=24')
    assert told.stderr.count('\n') == 1


def test_a_run_shows_figures_pictures_and_events(shards, tmp_path, capsys):
    import json

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run_dir = tmp_path / 'run'
    assert main([str(write_tiny(shards, run_dir, tmp_path / 'c.yaml'))]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'img/s' in line]
    assert len(lines) == 4 and 'kimg' in lines[0] and '(25%)' in lines[0] and ' left' in lines[0] and 'r1' in lines[0]
    records = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert [record['nimg'] for record in records] == [12, 24, 36, 48]
    wanted = {'loss/D', 'loss/G', 'logits/real', 'logits/fake', 'logits/real_sign', 'logits/fake_sign', 'penalty/r1',
              'penalty/path_length', 'path_length', 'gradient_norm/D_main', 'gradient_norm/G_reg', 'speed/img_per_s',
              'seconds/D_reg', 'memory/peak_gb'}
    assert wanted <= set(records[0]) and not any(key == 'w_mean' for key in records[0])
    events = EventAccumulator(str(run_dir / 'tensorboard')).Reload().Tags()
    assert wanted <= set(events['scalars']) and {'pictures/reals', 'pictures/fakes'} <= set(events['images'])
    grids = sorted(path.name for path in (run_dir / 'grids').iterdir())
    assert grids == ['fakes-00000.000.png', 'fakes-00000.024.png', 'fakes-00000.048.png', 'reals.png']
    assert Image.open(run_dir / 'grids' / 'fakes-00000.048.png').size == (256, 256)
