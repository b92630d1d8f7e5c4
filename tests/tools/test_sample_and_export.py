"""Pictures from a run, a checkpoint and an export are the same pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import tiny_config, train_here

from trainer import dist
from trainer.export import load_generator
from trainer.tools import export, sample


@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('sampled') / 'run'
    train_here(tiny_config(shards, folder, data={'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True}))
    return folder


def pictures(source, out, *options):
    assert sample.main([str(source), '--out', str(out), '--seeds', '0-2,7', *options]) == 0
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(out).iterdir())}


def test_run_checkpoint_and_export_give_the_same_pictures(run, tmp_path):
    assert export.main([str(run), str(tmp_path / 'export')]) == 0
    from_run = pictures(run, tmp_path / 'a')
    assert list(from_run) == ['seed000000.png', 'seed000001.png', 'seed000002.png', 'seed000007.png']
    for number, source in enumerate((run / 'checkpoints' / '000000000048', tmp_path / 'export', run)):
        again = pictures(source, tmp_path / f'b{number}')
        assert all(np.array_equal(from_run[name], again[name]) for name in from_run)
    # a seed's picture does not depend on which others are asked for
    assert sample.main([str(run), '--out', str(tmp_path / 'c'), '--seeds', '7']) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'c' / 'seed000007.png')), from_run['seed000007.png'])


def test_options_change_what_they_name(run, tmp_path):
    default = pictures(run, tmp_path / 'a')
    zero = pictures(run, tmp_path / 'zero', '--psi', '0', '--class', 'class1')
    assert all(np.array_equal(picture, zero['seed000000.png']) for picture in zero.values())
    other = pictures(run, tmp_path / 'other', '--class', '2')
    assert any(not np.array_equal(default[name], other[name]) for name in default)
    sheet, = pictures(run, tmp_path / 'grid', '--grid', '--columns', '3').values()
    assert sheet.shape == (32, 48, 3) and np.array_equal(sheet[:16, :16], default['seed000000.png'])


def test_psi_reaches_the_first_layers_alone(run, tmp_path):
    G = load_generator(run)
    assert G.num_ws == 6
    sheets = {cutoff: pictures(run, tmp_path / cutoff, '--psi', '0.3', '--psi-cutoff', cutoff, '--class', '1')
              for cutoff in '026'}
    draws = sample.draw_for_seeds([0], G.z_dim, [1, 1, 1], 1)
    ws = G.mapping(draws.z, torch.eye(3)[[1]])
    ws[:, :2] = G.mapping.w_avg + 0.3 * (ws[:, :2] - G.mapping.w_avg)
    expected = ((G.synthesis(ws, noise='const')[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    np.testing.assert_allclose(sheets['2']['seed000000.png'], expected, atol=1)
    whole, none = (pictures(run, tmp_path / name, *options, '--class', '1') for name, options in
                   (('whole', ['--psi', '0.3']), ('none', [])))
    for name, picture in sheets['0'].items():
        assert np.array_equal(picture, none[name]) and np.array_equal(sheets['6'][name], whole[name])
    assert any(not np.array_equal(sheets['2'][name], other[name]) for other in (whole, none) for name in none)


def test_an_export_loads_in_three_lines_without_pickle(run, tmp_path):
    export.main([str(run), str(tmp_path / 'export')])
    assert sorted(path.name for path in (tmp_path / 'export').iterdir()) == ['generator.json', 'generator.safetensors']
    G = load_generator(tmp_path / 'export')
    images = G(torch.randn(4, G.z_dim), torch.eye(3)[[0, 1, 2, 0]], truncation_psi=0.7)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in G.parameters())


@pytest.mark.parametrize('options, message', [
    (['--seeds', '5-3'], '5-3'), (['--seeds', 'x'], "'x' is not a number"), (['--class', 'dog'], 'class0, class1, class2'),
    (['--columns', '0'], 'below 1'), (['--psi', 'nan'], 'psi nan is not a number'),
    (['--seeds', '0-99999999999'], 'at most 10000'),
    (['--psi-cutoff', '7'], 'psi-cutoff 7 is outside 0 to 6'), (['--psi-cutoff', '-1'], 'psi-cutoff -1 is outside'),
])
def test_bad_options(run, tmp_path, capsys, options, message):
    assert sample.main([str(run), '--out', str(tmp_path / 'out'), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_bad_sources(run, tmp_path, capsys):
    assert sample.main([str(run), '--out', '/proc/nothing']) == 2 and '/proc/nothing' in capsys.readouterr().err
    assert sample.main([str(tmp_path / 'nowhere')]) == 2
    assert 'no such folder' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    assert sample.main([str(tmp_path / 'empty')]) == 2
    assert 'holds no usable checkpoint' in capsys.readouterr().err
    export.main([str(run), str(tmp_path / 'export')])
    assert export.main([str(run), str(tmp_path / 'export')]) == 2
    about = json.loads((tmp_path / 'export' / 'generator.json').read_text())
    about['options']['w_dim'] = 8
    (tmp_path / 'export' / 'generator.json').write_text(json.dumps(about))
    capsys.readouterr()
    assert sample.main([str(tmp_path / 'export')]) == 2
    assert 'another model' in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    next((tmp_path / 'run' / 'checkpoints' / '000000000048').glob('*.distcp')).write_bytes(b'')
    damaged = pictures(tmp_path / 'run', tmp_path / 'a')
    older = pictures(run / 'checkpoints' / '000000000024', tmp_path / 'b')
    assert all(np.array_equal(damaged[name], older[name]) for name in older)
