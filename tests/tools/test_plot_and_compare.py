"""Curves and tables of runs, from what the runs have written."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest
from runs_for_tests import tiny_config, train_here

from trainer import dist
from trainer.history import best_evaluation, read_evaluations, read_reports
from trainer.tools import compare, plot

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
    assert plot.main([str(runs[0]), '--keys', 'nothing']) == 2 and 'loss/D' in capsys.readouterr().err


def test_noise_is_compared_where_there_is_some(runs, capsys):
    """Records from before the key are of the constant map; of generators without noise it is None."""
    for one, other, told in (({}, {'noise': 'const', 'psi_cutoff': None}, ''), ({}, {'noise': 'random'}, 'noise=const'),
                             ({'noise': 'random'}, {'noise': None}, ''), ({}, {'noise': None}, ''),
                             ({}, {'psi_cutoff': 8}, 'psi_cutoff=None')):
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
