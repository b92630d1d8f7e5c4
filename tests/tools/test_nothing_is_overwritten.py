"""No command writes over a file: what is there already stays, and pictures are named by what they show."""

import json

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import tiny_config, train_here

from imago.trainer.data.durable import write_beside
from imago.trainer.ranks import dist
from imago.trainer.tools import evaluate, export, names, plot, sample
from imago.trainer.watch.grids import STRIP, fitting, grid
from imago.trainer.watch.indicators import INDICATORS


@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('kept') / 'mine'
    train_here(tiny_config(shards, folder, data={'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True},
                           guard={'action': 'warn', 'thresholds': {'real_sign': 0.5}, 'start_kimg': 0, 'pictures': 16}))
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_samples_lie_in_the_run_and_are_named_by_what_they_show(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sample.main([str(run), '--seeds', '7', '--class', 'class1', '--psi', '0.7']) == 0
    assert sample.main([str(run / 'checkpoints' / '000000000024'), '--seeds', '7', '--class', 'class1', '--psi', '0.7']) == 0
    assert sorted(path.name for path in (run / 'samples').iterdir()) == [
        'mine-00000.024kimg-class1-seed000007-psi0.7.png', 'mine-00000.048kimg-class1-seed000007-psi0.7.png']
    assert export.main([str(run), 'my-generator']) == 0
    assert sample.main(['my-generator', '--seeds', '0-3', '--grid', '--psi-cutoff', '2']) == 0
    assert [path.name for path in (tmp_path / 'samples').iterdir()] == ['my-generator-00000.048kimg-seeds0-3-psi1-cutoff2.png']


def test_what_differs_is_named_otherwise():
    stems = {names.of_seeds(seeds) for seeds in ([0, 1, 2], [0, 2], [0, 1, 5], [0, 4, 5], [1], [2])}
    assert len(stems) == 6 and names.of_seeds([0, 1, 2]) == 'seeds0-2'
    vectors = np.eye(3, dtype=np.float32)
    assert len({names.of_condition(row) for row in vectors}) == 3
    assert names.word('../a b/ü') == 'a_b_ü' and names.word('..') == '_'


def test_no_command_writes_over_a_file(run, tmp_path, capsys):
    commands = [
        lambda out: sample.main([str(run), '--seeds', '0-1', '--out', str(out)]),
        lambda out: sample.main([str(run), '--seeds', '0-1', '--grid', '--out', str(out)]),
        lambda out: plot.main([str(run), '--out', str(out / 'curves.png')]),
        lambda out: export.main([str(run), str(out)]),
    ]
    for number, command in enumerate(commands):
        out = tmp_path / str(number)
        out.mkdir()
        assert command(out) == 0
        written = files(out)
        assert written and command(out) in (0, 2) and files(out) == written      # the same again adds nothing
        for name in written:
            (out / name).write_bytes(b'something of the user')
        assert command(out) in (0, 2)
        assert all(files(out)[name] == b'something of the user' for name in written)
    assert 'curves-2.png: ' in capsys.readouterr().out


def test_a_file_beside_one_of_its_name(tmp_path):
    path = tmp_path / 'a.png'
    assert [write_beside(path, content).name for content in (b'1', b'2', b'1', b'3', b'2')] == [
        'a.png', 'a-2.png', 'a.png', 'a-3.png', 'a-2.png']


@pytest.mark.parametrize('channels', [1, 3])
def test_grids_enlarge_small_pictures_and_name_classes(channels):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 16, channels), dtype=np.uint8)
    sheet = np.asarray(grid(pictures, 2, ['flags', 'a very long name of a class', '']))
    assert sheet.shape[:2] == (2 * (128 + STRIP), 2 * 64) and sheet.ndim == (2 if channels == 1 else 3)
    assert np.array_equal(sheet[:128:4, 64:128:4].reshape(32, 16, channels), pictures[1])
    assert sheet[128:128 + STRIP, :64].max() > 200 and not sheet[128 + STRIP + 128:].any() and not sheet[128 + STRIP:, 64:].any()
    assert Image.fromarray(np.asarray(grid(np.zeros((1, 200, 200, 3), np.uint8), 1))).size == (200, 200)


def test_captions_are_cut_to_what_fits():
    from PIL import ImageFont
    font = ImageFont.load_default(11)
    cut = fitting('a very long name of a class', 60, font)
    assert cut.endswith('…') and 40 < font.getlength(cut) <= 60
    assert fitting('flags', 60, font) == 'flags' and fitting('flags', 2, font) == ''


def test_plots_draw_thresholds_and_leave_out_flat_zeros(run, tmp_path, monkeypatch):
    drawn = {}

    def panel(axes, name, curves, runs):
        drawn[name] = axes
    monkeypatch.setattr(plot, 'draw_panel', panel)
    plot.plot([run], tmp_path / 'all.png', list(plot.DEFAULT))
    reports = [json.loads(line) for line in (run / 'stats.jsonl').read_text().splitlines()]
    zeros = {key for key in reports[0] if all(report.get(key, 0) == 0 for report in reports)}
    assert 'guard/duplicates' in drawn.keys() | zeros and zeros and not zeros & drawn.keys()
    assert 'warns above 0.5' in drawn['guard/real_sign'].get_title()             # the run's own threshold
    assert f'warns below {INDICATORS["diversity"].threshold:g}' in drawn['guard/diversity'].get_title()
    plot.plot([run], tmp_path / 'zero.png', [min(zeros)])
    assert min(zeros) in drawn                                                    # asked for by its name


def test_an_evaluation_that_is_interrupted_ends_in_a_line(run, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr('imago.trainer.tools.scoring.evaluate', interrupted)
    assert evaluate.main([str(run), '--images', '20', '--metrics', 'kid', '--extractor', 'effnet_lite0']) == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'imago evaluate: interrupted; nothing is recorded'


def test_scores_of_few_pictures_are_explained_and_shown_in_tensorboard(run, capsys):
    assert evaluate.main([str(run), '--images', '20', '--metrics', 'fid,kid', '--extractor', 'effnet_lite0']) == 0
    told = capsys.readouterr()
    assert 'note: of 20 pictures, fd_effnet_lite0 is too high' in told.out and 'read kid' in told.out
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run / 'tensorboard' / 'evaluate')).Reload()
    point, = events.Tensors('metrics/kid_effnet_lite0') if 'metrics/kid_effnet_lite0' in events.Tags()['tensors'] else \
        events.Scalars('metrics/kid_effnet_lite0')
    assert point.step == 48
