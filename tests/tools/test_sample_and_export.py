"""Pictures from a run, a checkpoint and an export are the same pictures, and those of README's lines."""

import json
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import tiny_config, train_here

from imago.trainer.data.labels import class_index
from imago.trainer.data.sealed import write_sealed
from imago.trainer.games.makers import LatentMaker
from imago.trainer.ranks import dist
from imago.trainer.runs.export import load_generator
from imago.trainer.tools import export, sample
from imago.trainer.watch.grids import STRIP, WANTED

README = Path(__file__).parents[2] / 'README.md'


@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('sampled') / 'run'
    train_here(tiny_config(shards, folder, data={'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True}))
    return folder


def pictures(source, out, *options):
    assert sample.main([str(source), '--out', str(out), '--seeds', '0-2,7', *options]) == 0
    return {seed_in(path): np.asarray(Image.open(path)) for path in sorted(Path(out).iterdir(), key=seed_in)}


def seed_in(path):
    return re.search(r'seeds?[0-9-]+[0-9]', path.name)[0]


def test_run_checkpoint_and_export_give_the_same_pictures(run, tmp_path):
    assert export.main([str(run), str(tmp_path / 'export')]) == 0
    from_run = pictures(run, tmp_path / 'a')
    assert list(from_run) == ['seed000000', 'seed000001', 'seed000002', 'seed000007']
    for number, source in enumerate((run / 'checkpoints' / '000000000048', tmp_path / 'export', run)):
        again = pictures(source, tmp_path / f'b{number}')
        assert all(np.array_equal(from_run[name], again[name]) for name in from_run)
    # a seed's picture does not depend on which others are asked for
    assert sample.main([str(run), '--out', str(tmp_path / 'c'), '--seeds', '7']) == 0
    alone, = (tmp_path / 'c').iterdir()
    assert np.array_equal(np.asarray(Image.open(alone)), from_run['seed000007'])


def test_options_change_what_they_name(run, tmp_path):
    default = pictures(run, tmp_path / 'a')
    zero = pictures(run, tmp_path / 'zero', '--psi', '0', '--class', 'class1')
    assert all(np.array_equal(picture, zero['seed000000']) for picture in zero.values())
    other = pictures(run, tmp_path / 'other', '--class', '2')
    assert any(not np.array_equal(default[name], other[name]) for name in default)
    sheet, = pictures(run, tmp_path / 'grid', '--grid', '--columns', '3', '--scale', '2').values()
    assert sheet.shape == (2 * (32 + STRIP), 96, 3) and np.array_equal(sheet[:32:2, 1:32:2], default['seed000000'])
    assert sheet[32:32 + STRIP].max() > 200     # the class is written below


def test_psi_reaches_the_first_layers_alone(run, tmp_path):
    G = load_generator(run)
    assert G.num_ws == 6
    sheets = {cutoff: pictures(run, tmp_path / cutoff, '--psi', '0.3', '--psi-cutoff', cutoff, '--class', '1')
              for cutoff in '026'}
    draws = LatentMaker({'G': G}, [1, 1, 1]).inputs([0], 1)
    ws = G.mapping(draws.z, torch.eye(3)[[1]])
    ws[:, :2] = G.mapping.w_avg + 0.3 * (ws[:, :2] - G.mapping.w_avg)
    expected = ((G.synthesis(ws, noise='const')[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    np.testing.assert_allclose(sheets['2']['seed000000'], expected, atol=1)
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
    (['--seeds', '0-9999,10000'], 'at most 10000'), (['--seeds', '9' * 5000], 'up to 18 digits'), (['--seeds', '²'], "'²'"),
    (['--seeds', str(2 ** 63)], 'up to 18 digits'), (['--columns', '1000000000'], 'more than the pictures, 32'),
    (['--psi', '1e30'], 'psi 1e+30'), (['--truncation', '0'], 'at least 0.01'), (['--out', ''], '--out is empty'),
    (['--standing-batches', '-1'], '--standing-batches -1'), (['--standing-batches', str(10 ** 12)], '0 and 10000'),
    (['--class', '²'], 'class0, class1, class2'), (['--class', '3'], '0 to 2'),
    (['--condition', '1,2'], 'condition: this generator takes none; choose a class'),
])
def test_bad_options(run, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert sample.main([str(run), '--out', 'out', *options]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert message in line and not list(tmp_path.iterdir())


def test_the_largest_seed_and_as_many_columns_as_pictures(run, tmp_path):
    assert sample.main([str(run), '--out', str(tmp_path), '--seeds', f'0-8,{10 ** 18 - 1}', '--grid', '--columns', '10']) == 0
    path, = tmp_path.iterdir()
    assert Image.open(path).size == (10 * WANTED, WANTED + STRIP)


def test_of_many_classes_the_nearest_are_named():
    names = [f'class-{number:04d}' for number in range(3000)]
    with pytest.raises(ValueError) as caught:
        class_index('class-2999x', names)
    assert 'knows class-2999, ' in str(caught.value) and '(3000 in all) (or 0 to 2999)' in str(caught.value)
    assert len(str(caught.value)) < 300
    assert class_index('class-0007', names) == class_index('7', names) == 7


def test_bad_sources(run, tmp_path, capsys):
    assert sample.main([str(run), '--out', '/proc/nothing']) == 2 and '/proc/nothing' in capsys.readouterr().err
    assert sample.main([str(tmp_path / 'nowhere')]) == 2
    assert 'no such folder' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    assert sample.main([str(tmp_path / 'empty')]) == 2
    assert 'holds no usable checkpoint' in capsys.readouterr().err
    export.main([str(run), str(tmp_path / 'export')])
    assert export.main([str(run), str(tmp_path / 'export')]) == 2
    assert export.main([str(run), '']) == 2 and 'has no name' in capsys.readouterr().err
    assert export.main([str(run), str(tmp_path / 'new'), '--standing-batches', '-1']) == 2
    assert '--standing-batches -1' in capsys.readouterr().err and not (tmp_path / 'new').exists()


def change(**options):
    return lambda about: about['options'].update(options)


FORGED = {
    'a number for a model': (lambda about: about.update(model=5), 'model: Input should be'),
    'an unknown model': (lambda about: about.update(model='stylegan9'), 'model: Input should be'),
    'no options': (lambda about: about.update(options={}), 'resolution: Field required'),
    'options that are a list': (lambda about: about.update(options=[1]), 'options: Input should be a valid dict'),
    'an unknown option': (change(speed=3), "no option 'speed'"),
    'an option of the discriminator': (change(mbstd_group=4), "no option 'mbstd_group'"),
    'an option of another kind': (change(w_dim='wide'), 'w_dim: Input should be a valid integer'),
    'a negative option': (change(z_dim=-1), 'z_dim: Input should be greater'),
    'layers without end': (change(mapping_layers=200_000), 'mapping_layers: Input should be less'),
    'generators without end': (change(generators=10 ** 9), 'count: Input should be less than or equal to 64'),
    'generators with styles': (change(generators=2), 'cannot be built'),
    'huge channels': (change(channel_max=60_000, channel_base=60_000), 'the weights of the model that generator.json describes'),
    'channels beyond any memory': (change(channel_max=2 ** 62, channel_base=2 ** 62), 'damaged|cannot be built'),
    'huge pictures': (change(resolution=[14336, 14336]), 'more than 67108864 pixels'),
    'pictures larger than any file holds': (change(resolution=[65536, 65536]), 'both sides must be 4 to 16383 px'),
    'pictures of a size that is none': (change(resolution=[17, 'x']), 'resolution.1: Input should be a valid integer'),
    'two colours': (change(img_channels=2), 'img_channels: Input should be 1 or 3'),
    'other classes than its names': (change(c_dim=7), '3 class names, 3 counts and c_dim=7'),
    'names that are numbers': (lambda about: about.update(class_names=[1, 2, 3]), 'class_names.0: Input should be a valid string'),
    'a count too few': (lambda about: about.update(class_counts=[1, 1]), '3 class names, 2 counts'),
    'a negative count': (lambda about: about.update(class_counts=[-1, 1, 1]), 'class_counts.0: Input should be greater'),
    'a huge count': (lambda about: about.update(class_counts=[10 ** 400, 1, 1]), 'class_counts.0: '),
    'classes that are all empty': (lambda about: about.update(class_counts=[0, 0, 0]), 'all its classes are empty'),
    'pictures shown beyond counting': (lambda about: about.update(nimg=10 ** 400), 'nimg: '),
    'no hash of its weights': (lambda about: about.pop('weights_sha256'), 'its SHA-256 is not the one'),
    'another width': (change(w_dim=8), 'of another model than it says: .*copying a param'),
}


@pytest.mark.parametrize('forge, message', FORGED.values(), ids=FORGED)
def test_a_forged_description_is_refused_before_anything_is_built(run, tmp_path, capsys, forge, message):
    assert export.main([str(run), str(tmp_path / 'export')]) == 0
    path = tmp_path / 'export' / 'generator.json'
    about = json.loads(path.read_text())
    forge(about)
    write_sealed(path, about)
    capsys.readouterr()
    assert sample.main([str(tmp_path / 'export'), '--out', str(tmp_path / 'out')]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert re.search(message, line) and len(line) < 500 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('limit', [0, 500, 20_000])
def test_a_full_disk_leaves_nothing_of_an_export(run, tmp_path, capsys, limit):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))   # writing past it fails as on a full disk
    try:
        status = export.main([str(run), str(tmp_path / 'a' / 'b')])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line, = capsys.readouterr().err.splitlines()
    assert status == 2 and f'{tmp_path}/a/b/generator.' in line and 'File too large' in line and not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_torn_picture(run, tmp_path, capsys):
    pictures(run, tmp_path / 'out')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        assert sample.main([str(run), '--out', str(tmp_path / 'out'), '--seeds', '0,9', '--psi', '0.5']) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line, = capsys.readouterr().err.splitlines()
    assert 'seed000000-psi0.5.png cannot be written: ' in line
    assert before == {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}


def test_a_loaded_generator_gives_the_same_pictures_in_each_call(run):
    G = load_generator(run)
    for layer in G.modules():
        if hasattr(layer, 'noise_strength'):
            layer.noise_strength.fill_(1.0)
    z, c = torch.randn(4, G.z_dim), torch.eye(3)[[0, 1, 2, 0]]
    assert torch.equal(G(z, c), G(z, c)) and not torch.equal(G(z, c, noise='random'), G(z, c, noise='random'))
    ws = G.mapping(z, c)
    assert not torch.equal(G.synthesis(ws), G.synthesis(ws)), 'what is trained draws noise'


def test_lines_of_the_readme_give_the_pictures_of_the_command(run, tmp_path, monkeypatch):
    lines, = (block for block in re.findall('```python\n(.*?)```', README.read_text(), re.DOTALL) if 'my-generator' in block)
    monkeypatch.chdir(tmp_path)
    assert export.main([str(run), 'my-generator']) == 0
    options = re.search(r'imago sample my-generator (--seeds 0-3 --psi 0.7)', lines)[1].split()
    assert sample.main(['my-generator', *options]) == 0
    names: dict = {}
    exec(lines, names)
    for index, path in enumerate(sorted(Path('samples').iterdir(), key=seed_in)):
        assert np.array_equal(np.asarray(names['pictures'][index]), np.asarray(Image.open(path))), path
    assert index == 3


def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    next((tmp_path / 'run' / 'checkpoints' / '000000000048').glob('*.distcp')).write_bytes(b'')
    damaged = pictures(tmp_path / 'run', tmp_path / 'a')
    older = pictures(run / 'checkpoints' / '000000000024', tmp_path / 'b')
    assert all(np.array_equal(damaged[name], older[name]) for name in older)
