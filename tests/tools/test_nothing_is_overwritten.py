"""No command writes over a file: what is there already stays, and pictures are named by what they show."""

import json
import re
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import tiny_config, train_here

from imago.launch import completion, doctor
from imago.launch.cli import MODULES, WHERE
from imago.trainer.data.durable import write_beside
from imago.trainer.pack import command as pack
from imago.trainer.ranks import dist
from imago.trainer.tools import compare, cost, evaluate, export, names, plot, sample
from imago.trainer.watch.grids import STRIP, captions_of, fitting, grid
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


JOB = ['data.path=/lab/shards', 'run_dir=/lab/runs/x', 'batch=256', '--nodes', '2', '--gpus-per-node', '1']
CLUSTERS = {'slurm': [*JOB, '--time', '1:00:00'], 'kubernetes': [*JOB, '--image', 'registry/imago:1', '--pvc', 'claim:/lab']}
WRITERS = {   # command -> ways to write into a folder that exists; each returns its exit status
    'sample': [lambda run, out: sample.main([str(run), '--seeds', '0-1', '--out', str(out)]),
               lambda run, out: sample.main([str(run), '--seeds', '0-1', '--grid', '--out', str(out)])],
    'plot': [lambda run, out, name=name: plot.main([str(run), '--out', str(out / name)])
             for name in ('curves', 'a.svg', 'a.pdf')],
    'export': [lambda run, out: export.main([str(run), str(out)])],
    'pack': [lambda run, out: pack.main([str(run.parent / 'pictures'), str(out), '--resolution', '16', '--workers', '1'])],
    'launch': [lambda run, out, where=where: import_module(WHERE[where]).main(
        ['dcgan-64', *CLUSTERS[where], '-o', str(out / 'job')]) for where in CLUSTERS],
}
PRINTERS = {   # these write no file
    'compare': lambda run: compare.main([str(run)]), 'doctor': lambda run: doctor.main([]),
    'completion': lambda run: completion.main(['bash']),
    'cost': lambda run: cost.main(['dcgan-64', 'data.path=x', 'run_dir=x', 'data.resolution=64', '--nodes', '1']),
}
INTO_A_RUN = {'train', 'evaluate'}    # a run is continued, and refused under another configuration; scores are appended


def test_every_command_is_known_here():
    assert WRITERS.keys() | PRINTERS.keys() | INTO_A_RUN == MODULES.keys()


@pytest.mark.parametrize('command', [way for ways in WRITERS.values() for way in ways],
                         ids=[f'{name}-{number}' for name, ways in WRITERS.items() for number in range(len(ways))])
def test_no_command_writes_over_a_file(run, tmp_path, capsys, command):
    (run.parent / 'pictures').mkdir(exist_ok=True)
    for number in range(2):
        Image.new('RGB', (20, 20), (90 * number, 9, 9)).save(run.parent / 'pictures' / f'{number}.png')
    out = tmp_path / 'out'
    out.mkdir()
    assert command(run, out) == 0
    written = files(out)
    capsys.readouterr()
    status = command(run, out)
    printed = capsys.readouterr()
    assert written and status in (0, 2) and files(out) == written      # the same again adds nothing
    assert re.search('already|exist', printed.err if status else printed.out)
    for name in written:
        (out / name).write_bytes(b'something of the user')
    assert command(run, out) in (0, 2)
    assert all(files(out)[name] == b'something of the user' for name in written)


@pytest.mark.parametrize('command', PRINTERS.values(), ids=PRINTERS)
def test_other_commands_write_no_file(run, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    before = files(run)
    assert command(run) == (2 if command is PRINTERS['compare'] else 0)    # the run has no scores yet
    assert files(run) == before and not list(tmp_path.iterdir())


def test_a_file_beside_one_of_its_name(tmp_path):
    path = tmp_path / 'a.png'
    written = [write_beside(path, content) for content in (b'1', b'2', b'1', b'3', b'2')]
    assert [(each.path.name, each.new) for each in written] == [
        ('a.png', True), ('a-2.png', True), ('a.png', False), ('a-3.png', True), ('a-2.png', False)]


def test_an_enlarged_picture_says_so_in_its_name(run, tmp_path, capsys):
    for _ in range(2):
        assert sample.main([str(run), '--seeds', '1', '--scale', '3', '--class', '0', '--out', str(tmp_path)]) == 0
    picture, = tmp_path.iterdir()
    assert picture.name == 'mine-00000.048kimg-class0-seed000001-psi1-x3.png' and Image.open(picture).size == (48, 48)
    assert capsys.readouterr().out.splitlines() == [f'wrote {picture}', f'{picture} is there already, with just this picture']
    assert sample.main([str(run), '--seeds', '1-2', '--scale', '3', '--class', '0', '--out', str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith('-seed000002-psi1-x3.png (1 of them are there already)\n')


def test_a_grid_too_large_for_any_memory_is_refused_at_once(run, tmp_path, capsys):
    assert sample.main([str(run), '--seeds', '0-9999', '--grid', '--scale', '64', '--out', str(tmp_path / 'out')]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'a grid of 8192 x 1280000 px' in line and '--scale' in line and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name, message', [('.', 'is a folder'), ('none/a.png', 'there is no folder'), ('a.foo', 'ends in .foo')])
def test_a_plot_goes_to_a_picture_in_a_folder(run, tmp_path, capsys, name, message):
    assert plot.main([str(run), '--out', str(tmp_path / name)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert message in line and not list(tmp_path.iterdir()) and not list(tmp_path.parent.glob(f'{tmp_path.name}-*'))


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


def test_captions_are_names_as_far_as_the_font_has_their_letters():
    names = ['flags', 'Früchte', '猫', '', 'two\nlines', 'Čeština']
    assert captions_of(range(6), names) == ['flags', 'Fruchte', 'class 2', 'class 3', 'class 4', 'Cestina']
    assert captions_of([1, 0], ()) == []
    from PIL import ImageFont
    font = ImageFont.load_default(11)
    lacking = bytes(font.getmask('\uffff'))
    assert all(bytes(font.getmask(chr(code))) != lacking for code in range(33, 127))


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
