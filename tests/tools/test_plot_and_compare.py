"""Curves and tables of runs, from what the runs have written."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest
from runs_for_tests import file_size_limit, tiny_config, train_here

from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import SEAL, list_checkpoints
from imago.trainer.runs.history import best_evaluation, drop_torn_line, read_evaluations, read_reports
from imago.trainer.tools import compare, plot

PROTOCOL = {'extractor': 'net', 'weights_sha256': 'ab', 'resizer': 'clean', 'dataset': 'd', 'resolution': [16, 16],
            'fakes': 100, 'reals': 30, 'seed': 0, 'psi': 1.0, 'truncation': None}


@pytest.fixture(scope='module')
def trained(shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('runs') / 'one'
    train_here(tiny_config(shards, folder))
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """Two runs with evaluations at 24 and 48 images."""
    folders = [tmp_path / 'one', tmp_path / 'two']
    for folder, scores in zip(folders, ([0.3, 0.2], [0.1, 0.4]), strict=True):
        shutil.copytree(trained, folder)
        for nimg, score in zip((24, 48), scores, strict=True):
            append(folder, nimg, score)
    return folders


def append(folder, nimg, score, **protocol):
    line = {'nimg': nimg, 'time': 0, 'values': {'kid_net': score}, 'intervals': {'kid_net': [score - 0.05, score + 0.05]},
            'protocol': PROTOCOL | protocol}
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps(line) + '\n')


def test_a_future_that_was_given_up_is_left_out(runs):
    append(runs[0], 36, 0.25)       # resumed from 24
    assert [line['nimg'] for line in read_evaluations(runs[0])] == [24, 36]
    with open(runs[0] / 'metrics.jsonl', 'a') as file:
        file.write('{"nimg": 48, "val')     # killed while it wrote
    assert [line['nimg'] for line in read_evaluations(runs[0])] == [24, 36]


def test_seconds_leave_out_the_time_that_a_run_stood_still(trained):
    reports = read_reports(trained)
    assert [report['nimg'] for report in reports] == [12, 24, 36, 48]
    assert reports[-1]['seconds'] == pytest.approx(sum(12 / report['speed/img_per_s'] for report in reports))


def test_best_knows_which_way_is_up():
    lines = [{'values': {'kid_net': kid, 'recall_net': recall}} for kid, recall in ((0.3, 0.1), (0.1, 0.2), (0.2, 0.3))]
    assert best_evaluation(lines, 'kid_net') is lines[1]
    assert best_evaluation(lines, 'recall_net') is lines[2]
    assert best_evaluation(lines, 'fid') is None


def test_plot_draws_a_panel_a_key_and_a_line_a_run(runs, tmp_path, capsys):
    out = tmp_path / 'out.png'
    assert plot.main([*map(str, runs), '--out', str(out), '--keys', 'metrics/*', 'loss/?']) == 0
    assert '3 panels, 2 runs' in capsys.readouterr().out
    pixels = plt.imread(out)[..., :3]
    blue, orange = (abs(pixels - [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]).max(-1).__lt__(0.02).sum()
                    for color in ('#1f77b4', '#ff7f0e'))
    assert blue > 200 and orange > 200


def test_curves_say_where_and_what(runs):
    score = plot.curves_of(runs[1], by_hours=False)['metrics/kid_net']
    assert [(x, y) for x, y, _ in score] == [(0.024, 0.1), (0.048, 0.4)] and score[0][2] == pytest.approx((0.05, 0.15))
    hours = [x for x, *_ in plot.curves_of(runs[1], by_hours=True)['loss/D']]
    assert hours == [report['seconds'] / 3600 for report in read_reports(runs[1])]


def test_plot_refuses_what_is_not_there(runs, tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 2 and 'holds no stats.jsonl' in capsys.readouterr().err
    assert plot.main([str(runs[0]), '--keys', 'los/D']) == 2 and 'loss/D' in capsys.readouterr().err


DAMAGED = [  # a line in place of the last one, a piece of the message
    ('[]', '[] is no report'), ('{}', 'nimg=null is no count'), ('null', 'null is no report'),
    ('{"nimg": "many", "speed/img_per_s": 1}', 'nimg=many is no count'), ('{"nimg": true, "speed/img_per_s": 1}', 'nimg=true is'),
    ('{"nimg": 48, "speed/img_per_s": 0}', 'speed/img_per_s=0 is no speed'), ('{"nimg": 48}', 'speed/img_per_s=null is no speed'),
    ('{"nimg": -1, "speed/img_per_s": 1}', 'nimg=-1 is no count'), ('{"nimg": 1e400, "speed/img_per_s": 1}', 'nimg=inf'),
    ('{"nimg": ' + '9' * 5000 + '}', 'Exceeds the limit'), ('[' * 100_000, 'nested too deeply'),
    ('{"nimg": 4', "Expecting ',' delimiter"),
    ('{"nimg": 48, "speed/img_per_s": 1, "loss/D": [1]}', 'loss/D=[1] is no number'),
    ('{"nimg": 48, "speed/img_per_s": 1, "loss/D": ' + '9' * 400 + '}', 'is no number'),
    ('\udcff\udcfe\x00', "can't decode byte"),
    ('{"nimg": 48, "speed/img_per_s": NaN}', 'is no speed'),
]


@pytest.mark.parametrize('command', [plot, compare], ids=['plot', 'compare'])
@pytest.mark.parametrize('line, message', DAMAGED, ids=[message for _, message in DAMAGED])
def test_a_damaged_report_is_named_with_its_line(runs, capsys, command, line, message):
    path = runs[0] / 'stats.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:3], line]) + '\n', errors='surrogateescape')
    assert command.main([str(runs[0])]) == 2
    told = capsys.readouterr().err
    assert f'{path}, line 4: ' in told and message in told and told.count('\n') == 1
    assert not (runs[0] / 'curves.png').exists()


@pytest.mark.parametrize('change, message', [
    ({'values': 5}, 'values=5 is no table'), ({'values': {'kid_net': 'low'}}, 'kid_net=low is no number'),
    ({'intervals': {}}, 'the interval of kid_net is null'),
    ({'intervals': {'kid_net': [0.1]}}, 'the interval of kid_net is [0.1]'),
    ({'intervals': {'kid_net': [0.1, {}]}}, 'kid_net={} is no number'), ({'protocol': []}, 'protocol=[] is no table'),
    ({'nimg': None}, 'nimg=null is no count'),
])
def test_a_damaged_evaluation_is_named_with_its_line(runs, capsys, change, message):
    path = runs[0] / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + '\n' + json.dumps(json.loads(lines[1]) | change) + '\n')
    for command in (plot, compare):
        assert command.main([str(runs[0])]) == 2
        told = capsys.readouterr().err
        assert f'{path}, line 2: {message}' in told and told.count('\n') == 1


@pytest.mark.parametrize('change', [{'config': None}, {'config': {'network': {}}}, {'parameters': {'G': 'many', 'D': 1}},
                                    {'parameters': [1, 2]}, {'pictures': None}, {'world_size': 'x'}])
def test_compare_passes_over_damaged_checkpoints(runs, capsys, change):
    """It warns of each and takes the next older one; if none is whole, one more line says so."""
    checkpoints = list_checkpoints(runs[0] / 'checkpoints')[::-1]
    for damaged, path in enumerate(checkpoints, start=1):
        (path / SEAL).write_text(json.dumps(json.loads((path / SEAL).read_text()) | change))
        status = compare.main([str(runs[0])])
        *warnings, last = capsys.readouterr().err.splitlines() + [''] * (damaged < len(checkpoints))
        assert status == (2 if damaged == len(checkpoints) else 0)
        assert len(warnings) == damaged and all('is passed over' in line for line in warnings)
        assert bool(last) == (status == 2)


def test_a_torn_line_is_cut_off_before_the_next_one(trained, tmp_path):
    path = shutil.copy(trained / 'stats.jsonl', tmp_path / 'stats.jsonl')
    whole = path.read_text()
    for tail in ('', '{"nimg": 60, "loss', '{"nimg"' * 1000):
        path.write_text(whole + tail)
        drop_torn_line(path)
        assert path.read_text() == whole
    path.write_text('torn')
    drop_torn_line(path)
    assert path.read_text() == ''


def test_words_of_the_guard_are_no_curve(runs):
    path = runs[0] / 'stats.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:-1], lines[-1][:-1] + ', "guard/warning/diversity": "few pictures"}']) + '\n')
    assert 'guard/warning/diversity' not in plot.curves_of(runs[0], by_hours=False)


def test_plot_leaves_nothing_on_a_full_disk(runs, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'old.png').write_bytes(b'old')
    with file_size_limit(1000):
        for name in ('old.png', 'new.png', 'new'):
            assert plot.main([str(runs[0]), '--out', str(tmp_path / 'out' / name), '--keys', 'loss/*']) == 2
            told = capsys.readouterr().err
            assert 'File too large' in told and told.count('\n') == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == {'old.png': b'old'}


def test_plot_draws_so_many_panels_and_no_more(runs, tmp_path, capsys):
    path = runs[0] / 'stats.jsonl'
    report = json.loads(path.read_text().splitlines()[0]) | {f'x/{number}': 1.0 for number in range(300)}
    path.write_text(json.dumps(report) + '\n')
    assert plot.main([str(runs[0]), '--keys', 'x/*']) == 2
    told = capsys.readouterr().err
    assert '300 curves are named' in told and '(300 in all)' in told and len(told) < 500


def test_noise_is_compared_where_there_is_some(runs, capsys):
    """Records older than the key were made with constant noise; for generators without noise it is None."""
    for one, other, told in (({}, {'noise': 'const', 'psi_cutoff': None}, ''), ({}, {'noise': 'random'}, 'noise=const'),
                             ({'noise': 'random'}, {'noise': None}, ''), ({}, {'noise': None}, ''),
                             ({}, {'psi_cutoff': 8}, 'psi_cutoff=null')):
        append(runs[0], 48, 0.2, **one)
        append(runs[1], 48, 0.2, **other)
        assert compare.main(list(map(str, runs))) == 0
        differences = capsys.readouterr().err
        assert told in differences if told else not differences


def test_compare_prints_facts_and_scores(runs, capsys):
    assert compare.main(list(map(str, runs))) == 0
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert 'kid_net' in head and '0.2 [0.15, 0.25]' in one and '0.4 [0.35, 0.45]' in two and ', 30 |' in one
    assert compare.main([*map(str, runs), '--best', 'kid_net', '--json']) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run['evaluated_at_kimg'] for run in told] == [0.048, 0.024]
    assert told[0]['parameters']['G'] > 1000 and told[0]['kimg'] == 0.048


@pytest.mark.parametrize('other', [{'extractor': 'another'}, {'resizer': 'legacy'}, {'weights_sha256': 'cd'}])
def test_compare_refuses_to_mix_extractors_and_resizers(runs, capsys, other):
    append(runs[1], 60, 0.3, **other)
    assert compare.main(list(map(str, runs))) == 2
    assert 'cannot stand in one table' in capsys.readouterr().err


def test_compare_says_what_else_differs(runs, capsys):
    append(runs[1], 60, 0.3, fakes=50)
    assert compare.main(list(map(str, runs))) == 0
    assert 'fakes=100' in capsys.readouterr().err
    assert compare.main([str(runs[0]), str(runs[0].parent)]) == 2
    assert compare.main([str(runs[0]), '--best', 'kid_ne']) == 2
    assert 'has no evaluation with kid_ne; its scores are kid_net' in capsys.readouterr().err
