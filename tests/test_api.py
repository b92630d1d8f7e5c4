"""What `import imago` gives does what docs/api.md says, as the commands do."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_for_tests import tiny_config, train_here

import imago
from imago.trainer.ranks import dist
from imago.trainer.tools import export, sample

PAGE = (Path(__file__).parents[1] / 'docs' / 'api.md').read_text()


@pytest.fixture(scope='module')
def run(wide_shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('api') / 'run'
    train_here(tiny_config(wide_shards, folder, data={'path': str(wide_shards), 'lanes': 12, 'workers': 0, 'conditional': True,
                                                      'resolution': 16}, total_kimg=0.012))
    return folder


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for name, colour in ('red', (255, 0, 0)), ('blue', (0, 0, 255)):
        (tmp_path / 'my-pictures' / name).mkdir(parents=True)
        for number in range(10):
            noise = generator.integers(0, 60, (16, 16, 3))
            picture = Image.fromarray(np.clip(np.array(colour) - noise, 0, 255).astype('uint8'))
            picture.save(tmp_path / 'my-pictures' / name / f'{number}.png')
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r'```python\n(.*?)```', PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks[:2]:
        exec(compile(block, 'docs/api.md', 'exec'), names)
    assert names['packed']['pictures'] == 20 and names['packed']['classes'] == {'blue': 10, 'red': 10}
    assert (names['ended'].kimg, names['ended'].ending) == (0.012, 'finished') and len(names['pictures']) == 6
    assert names['scores']['values'].keys() == {'kid_effnet_lite0'} and names['scores']['nimg'] == 12
    assert (tmp_path / 'runs' / 'mine' / 'metrics.jsonl').is_file() and names['z'].grad.abs().sum() > 0


def test_importing_is_light_and_all_names_are_there():
    code = 'import imago, sys; print(sorted({"torch", "numpy", "yaml", "PIL"} & sys.modules.keys()))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'
    assert all(getattr(imago, name).__doc__ for name in imago.__all__ if name != '__version__')


@pytest.mark.parametrize('options, words', [({}, []), ({'label': 1, 'psi': 0.5}, ['--class', '1', '--psi', '0.5'])])
def test_samples_are_those_of_the_command(run, tmp_path, options, words):
    assert sample.main([str(run), '--seeds', '3-5', '--out', str(tmp_path), *words]) == 0
    paths = sorted(tmp_path.glob('*.png'), key=lambda path: path.stem.split('-seed')[1])
    written = [np.asarray(Image.open(path)) for path in paths]
    pictures = imago.load(run).sample([3, 4, 5], **options)
    assert len(written) == 3 and all(np.array_equal(*pair) for pair in zip(written, pictures, strict=True))


def test_labels_are_numbers_or_names_one_for_all_or_for_each(run):
    trained = imago.load(run)
    first, second = trained.class_names[:2]
    mixed = trained.sample([1, 1], label=[first, 1])
    alone = trained.sample(1, label=0) + trained.sample(1, label=second)
    assert all(np.array_equal(*pair) for pair in zip(mixed, alone, strict=True)) and not np.array_equal(*mixed)
    z = torch.randn(2, trained.G.z_dim)
    one_hot = torch.eye(trained.G.c_dim)[[0, 1]]
    assert torch.equal(trained(z, [first, 1]), trained(z, one_hot)) and trained(z).shape == (2, 3, 16, 16)
    for wrong, told in [({'label': 'nothing'}, 'no class'), ({'label': 99}, 'no class'),
                        ({'label': [0]}, 'there are 1 labels for 2'), ({'psi': 1000.0}, 'psi'),
                        ({'condition': [1.0]}, 'takes none')]:
        with pytest.raises(ValueError, match=told):
            trained.sample([1, 2], **wrong)
    with pytest.raises(ValueError, match='no seeds'):
        trained.sample([])


def test_what_makes_no_sense_is_a_value_error(tmp_path, shards):
    for call, told in [
            (lambda: imago.pack(tmp_path, tmp_path / 'out', resolutoin=3), 'no option resolutoin; did you mean resolution'),
            (lambda: imago.pack(tmp_path, tmp_path / 'out', quality='high'), 'invalid int value'),
            (lambda: imago.pack(tmp_path / 'nowhere', tmp_path / 'out'), 'nowhere'),
            (lambda: imago.train('stylegan2-64', {'lr': 2}), 'unknown key lr; it is optim.g_lr'),
            (lambda: imago.train('stylegan2-64', ['data.path=' + str(tmp_path / 'nowhere')]), 'nowhere does not exist'),
            (lambda: imago.evaluate(tmp_path / 'nowhere', data=str(shards)), 'nowhere'),
            (lambda: imago.load(tmp_path / 'nowhere'), 'nowhere')]:
        with pytest.raises(ValueError, match=told):
            call()


def test_an_export_says_what_it_is_and_others_may_read_it(run, tmp_path, capsys):
    assert export.main([str(run), str(tmp_path / 'one')]) == 0
    assert 'no licence given: --licence TEXT' in capsys.readouterr().out
    assert export.main([str(run), str(tmp_path / 'two'), '--licence', 'CC-BY-4.0', '--data', 'squares that we drew']) == 0
    one, two = (imago.load(tmp_path / name).about for name in ('one', 'two'))
    assert one['data'].startswith('dataset') and ' pictures, digest ' in one['data'] and one['licence'] == ''
    assert (two['data'], two['licence'], two['version']) == ('squares that we drew', 'CC-BY-4.0', imago.__version__)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in (tmp_path / 'one').iterdir())
    assert export.main([str(tmp_path / 'two'), str(tmp_path / 'three')]) == 0
    assert imago.load(tmp_path / 'three').about['licence'] == 'CC-BY-4.0'       # an export of an export keeps it
    assert export.main([str(run), str(tmp_path / 'four'), '--data', 'x' * 501]) == 2 and not (tmp_path / 'four').exists()
