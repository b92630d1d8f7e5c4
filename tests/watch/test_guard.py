"""The guard: each indicator on constructed numbers, and runs that it watches, stops and takes back."""

import json

import numpy as np
import pytest
import torch
import yaml
from runs_for_tests import differing, on_ranks, read_checkpoint, tiny_tree, train_here
from shards_for_tests import write_dataset

from imago.trainer.config.games import PHASES
from imago.trainer.config.load import parse_config
from imago.trainer.data.shards import Sample, open_dataset
from imago.trainer.games import make_game, maker_of
from imago.trainer.models.spectral import spectral_norms
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import list_checkpoints
from imago.trainer.start import prepare
from imago.trainer.tools.train import main
from imago.trainer.train import GUARD_STATUS
from imago.trainer.watch import guard
from imago.trainer.watch.alarms import new_alarms, sounding, update_alarms
from imago.trainer.watch.diversity import area_colours, diversity_of
from imago.trainer.watch.indicators import INDICATORS, warning
from imago.trainer.watch.spikes import ENOUGH, end_report, new_memory, see_step

NEVER, ALWAYS = {'diversity': 0.0}, {'diversity': 1e9}   # thresholds below and above any value


@pytest.fixture(autouse=True)
def one_process():
    dist.init('cpu')


def guarded_tree(shards, run_dir, total_kimg=0.096, conditional=False, **settings):
    settings = {'pictures': 16, 'start_kimg': 0.036, 'patience': 2, 'thresholds': NEVER} | settings
    tree = tiny_tree(shards, run_dir) | {'total_kimg': total_kimg, 'guard': settings,
                                         'checkpoint': {'interval_kimg': 0.012, 'keep': 9}}
    tree['data']['conditional'] = conditional
    return tree


def guarded(*arguments, **settings):
    return parse_config(guarded_tree(*arguments, **settings), 'test')


def reports(run_dir):
    return [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]


# --- what a report sees

def memory_after(steps, reports=ENOUGH, layers=(1.0, 5.0)):
    memory = new_memory(PHASES, [torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in layers])
    for _ in range(reports):
        for step in steps:
            see_step(memory, PHASES, step)
        means, growth = end_report(memory, PHASES, list(layers))
    return memory, means, growth


def test_growth_is_over_the_median_of_the_reports_before():
    steps = [{'gradient_norm/D_main': norm, 'logits/real_sign': norm / 4} for norm in (1.0, 3.0)]
    memory, means, growth = memory_after(steps)
    assert means == {'gradient_norm/D_main': 2.0, 'logits/real_sign': 0.5} and not growth    # too few yet to know
    see_step(memory, PHASES, {'gradient_norm/D_main': 40.0})
    see_step(memory, PHASES, {'gradient_norm/D_main': 20.0})
    assert end_report(memory, PHASES, [1.0, 15.0])[1] == {'gradient_norm': 15.0, 'gradient_peak': 20.0, 'spectral_growth': 3.0}
    for step in steps:
        see_step(memory, PHASES, step)
    # one spike does not move a median
    assert end_report(memory, PHASES, [1.0, 5.0])[1] == {'gradient_norm': 1.0, 'gradient_peak': 1.5, 'spectral_growth': 1.0}


def test_phases_that_come_seldom_have_a_median_of_their_own():
    memory, _, _ = memory_after([{'gradient_norm/D_main': 1.0}])
    see_step(memory, PHASES, {'gradient_norm/G_reg': 1e6, 'gradient_norm/D_main': 2.0})
    assert end_report(memory, PHASES, [1.0, 5.0])[1] == {'gradient_norm': 2.0, 'gradient_peak': 2.0, 'spectral_growth': 1.0}
    assert memory['history'][0, PHASES.index('G_reg')] == 1e6


def test_spectral_norms_are_those_of_the_weights():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Conv2d(4, 8, 3))
    exact = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in network]
    found, again = spectral_norms(network), spectral_norms(network)
    assert found == again and found == pytest.approx(exact, rel=0.1)


# --- pictures

def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def diversity(fakes, reals, fake_labels=None, real_labels=None):
    labels = [torch.zeros(len(pictures), dtype=torch.int64) if given is None else torch.tensor(given)
              for pictures, given in ((fakes, fake_labels), (reals, real_labels))]
    return diversity_of(area_colours(fakes), area_colours(reals), *labels)


def test_diverse_fakes_are_as_far_apart_as_reals():
    found = diversity(noise(16, 1), noise(16, 2))
    assert found['duplicates'] == 0 and found['diversity'] == pytest.approx(1, abs=0.1) and len(found) == 2


def test_a_collapse_shows_in_distance_and_in_copies():
    few = noise(2, 1).repeat(8, axis=0) ^ np.random.default_rng(3).integers(0, 4, (16, 16, 16, 3), dtype=np.uint8)
    found = diversity(few, noise(16, 2))
    assert found['duplicates'] == 1 and 0.4 < found['diversity'] < 0.6
    one = diversity(few[:8], noise(1, 2).repeat(16, axis=0))     # of a dataset of one picture
    assert one == {'duplicates': 1.0}


def test_a_class_that_collapses_shows_among_others_that_do_not():
    fakes = np.concatenate([noise(8, 1), noise(1, 2).repeat(8, axis=0)])
    labels = [0] * 8 + [1] * 8
    found = diversity(fakes, noise(16, 3), labels, labels)
    assert found['class_diversity'] == 0 and found['class_duplicates'] == 1 and found['duplicates'] == 0.5
    # its only picture does not tell how diverse it should be, but the other class does
    assert diversity(fakes, noise(9, 3), labels, [0] * 8 + [1])['class_diversity'] == 0
    fine = diversity(noise(16, 4), noise(9, 3), labels, [0] * 8 + [1])
    assert fine['class_diversity'] == pytest.approx(1, abs=0.15) and fine['class_duplicates'] == 0


class Doubler(torch.nn.Module):
    def forward(self, x):
        return x * 2


def test_activations_near_the_largest_half():
    with guard.largest_half(layer := Doubler()) as shares:
        layer(torch.tensor([3.0]))               # float32 has room
        layer(torch.tensor([-16376.0], dtype=torch.float16))
    assert shares == pytest.approx([0.5], abs=1e-3)
    layer(torch.tensor([1.0], dtype=torch.float16))
    assert len(shares) == 1


class Brightness(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.where = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, labels):
        assert not self.training
        return images.mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize('held_out, expected', [(255, 0.0), (0, 1.0), (128, 0.5)])
def test_overfitting_is_where_held_out_pictures_lie_between_reals_and_fakes(shards, tmp_path, held_out, expected):
    run = prepare(guarded(shards, tmp_path / 'run'))
    D = run.state.networks['D'] = Brightness()
    watcher = guard.Guard(run.dataset, make_game(run.config, run.plan, run.state), maker_of(run.config, run.plan, run.state), run.strategy)
    watcher._reals, watcher._held_out = ([Sample({'image': np.full((16, 16, 3), value, np.uint8)}, 0, 'key')] * 5
                                         for value in (255, held_out))
    found = watcher._overfitting(np.zeros((16, 16, 16, 3), np.uint8))
    assert found['overfitting'] == pytest.approx(expected, abs=0.01) and D.training


@pytest.mark.parametrize('loss, names', [('nonsaturating', {'real_sign', 'loss_ratio'}), ('hinge', {'real_sign'}),
                                         ('relativistic', {'loss_ratio'}), ('wgan', set())])
def test_losses_tell_only_where_they_have_a_meaning(shards, tmp_path, loss, names):
    tree = guarded_tree(shards, tmp_path) | {'loss': {'name': loss}}
    watcher = object.__new__(guard.Guard)
    watcher.config = parse_config(tree, 'test')
    told = {'logits/real_sign': 0.9, 'loss/D': 0.1, 'loss/G': 3.0}
    assert set(watcher._from_losses(told)) == names
    watcher.config = watcher.config.changed(['game.name=began'])     # whose outputs are errors
    assert watcher._from_losses(told) == {}


# --- alarms

def hear(alarms, values, patience=3):
    return [update_alarms(alarms, {'duplicates': value}, 100 * number, patience=patience, thresholds={})
            for number, value in enumerate(values, 1)]


def test_an_alarm_waits_sounds_once_and_falls_silent():
    alarms = new_alarms()
    assert hear(alarms, [1, 1, 0, 1, 1]) == [[]] * 5
    assert hear(alarms, [1]) == [['duplicates']]
    assert sounding(alarms) == {'duplicates': 300}     # images shown when it was last good
    assert hear(alarms, [1, 0, 0, 1, 1, 1, 1, 0, 0]) == [[]] * 9 and sounding(alarms)
    assert hear(alarms, [0]) == [[]] and not sounding(alarms)
    assert hear(alarms, [1, 1, 1]) == [[], [], ['duplicates']]


def test_near_misses_sound_at_once_and_what_is_unknown_does_not():
    alarms = new_alarms()
    values = {'gradient_peak': 1e4, 'diversity': float('nan')}
    assert update_alarms(alarms, values, 7, patience=3, thresholds={}) == ['gradient_peak']
    assert list(sounding(alarms)) == ['gradient_peak']


@pytest.mark.parametrize('name', INDICATORS)
def test_each_indicator_sounds_on_its_side_of_its_threshold_and_says_why(name):
    indicator, alarms = INDICATORS[name], new_alarms()
    factors = (1.01, 0.99, 0.98) if indicator.above else (0.99, 1.01, 1.02)
    worse, better, stricter = (indicator.threshold * factor for factor in factors)
    options = {'patience': 1, 'thresholds': {}}
    assert update_alarms(alarms, {name: better}, 1, **options) == []
    assert update_alarms(new_alarms(), {name: better}, 1, patience=1, thresholds={name: stricter}) == [name]
    assert update_alarms(alarms, {name: worse}, 1, **options) == [name]
    text = warning(name, worse, indicator.threshold, 12500, 12000)
    assert f'{worse:.3g}' in text and '12.5 kimg' in text and indicator.advice in text and indicator.source


# --- runs

def without_memory(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith('guard.')}


def alone_straight_halves(shards, folder, held_out):
    def run(name, **settings):
        settings = {'conditional': True, 'data': str(held_out), 'thresholds': ALWAYS} | settings
        tree = guarded_tree(shards, folder / name, **settings)
        tree['log']['interval_kimg'] = 0.024
        return train_here(parse_config(tree, 'test'))
    alone, straight = run('alone', action='off'), run('straight')
    run('halves', total_kimg=0.036)    # between two reports
    return alone, straight, run('halves')


@pytest.mark.parametrize('world', [1, 2])
def test_a_watched_run_has_the_bits_of_one_left_alone_and_resumes_to_the_bit(shards, tmp_path, world):
    arguments = shards, tmp_path, write_dataset(tmp_path / 'held-out', (20,), classes=3, size=16)
    results = on_ranks(2, alone_straight_halves, *arguments) if world > 1 else [alone_straight_halves(*arguments)]
    for unwatched, one, other in results:
        assert not differing(one, other) and not differing(one, results[0][1])
        assert not differing(without_memory(one), without_memory(unwatched))
    told = reports(tmp_path / 'straight')
    assert {f'guard/{name}' for name in ('real_sign', 'overfitting', 'held_out_sign', 'loss_ratio', 'class_diversity',
                                         'duplicates')} <= set(told[-1])
    # once in an episode
    assert [report['nimg'] for report in told if 'guard/warning/diversity' in report] == [72]


def test_stop_checkpoints_and_has_a_status_of_its_own(shards, tmp_path, capsys):
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump(guarded_tree(shards, tmp_path / 'run', action='stop', thresholds=ALWAYS)))
    assert main([str(path)]) == GUARD_STATUS == 3
    out, err = capsys.readouterr()
    assert 'stopped by the guard at 0.048 kimg' in out and err.count('guard: diversity is') == 1
    assert 'below 1e+09, at 0.048 kimg, and was last within at 0.024' in err and 'What people do' in err
    newest = list_checkpoints(tmp_path / 'run' / 'checkpoints')[-1]
    assert newest.name == '000000000048'
    assert main([str(path)]) == GUARD_STATUS                      # as a scheduler would
    assert list_checkpoints(tmp_path / 'run' / 'checkpoints')[-1] == newest
    assert main([str(path), 'guard.action=warn']) == 0 and reports(tmp_path / 'run')[-1]['nimg'] == 96


def ill_until_rolled_back(self):
    """Look like `Guard._look` at a run that is collapsed from 36 images to the first rollback. Only rank 0's look counts."""
    ill = self.state.nimg >= 36 and self.state.memory['rollbacks'] < 1
    found = {'diversity': 0.0 if ill else 1.0} if dist.is_main() else {'duplicates': 1.0}
    return dist.gather((found, [1.0] * (self.state.guard['history'].shape[1] - len(PHASES))))[0]


def rolled_back(config):
    guard.Guard._look = ill_until_rolled_back
    return train_here(config)


@pytest.fixture
def look(monkeypatch):
    monkeypatch.setattr(guard.Guard, '_look', ill_until_rolled_back)


SICK = {'action': 'rollback', 'thresholds': {'diversity': 0.5}, 'lr_factor': 0.25}


def test_rollback_goes_on_from_before_at_lower_rates_and_loses_nothing(shards, tmp_path, look, capsys):
    straight = train_here(guarded(shards, tmp_path / 'straight', **SICK))
    names = [path.name for path in list_checkpoints(tmp_path / 'straight' / 'checkpoints')]
    assert names == [f'{nimg:012d}' for nimg in range(12, 97, 12)]
    assert 'went back from 0.048 to 0.024 kimg with lower learning rates; rollback 1' in capsys.readouterr().out
    before = read_checkpoint(tmp_path / 'straight' / 'checkpoints' / '000000000024')
    abandoned = read_checkpoint(tmp_path / 'straight' / 'checkpoints' / 'abandoned-1-000000000036')
    # the same step from the same state on the same pictures, at another rate
    redone = read_checkpoint(tmp_path / 'straight' / 'checkpoints' / '000000000036')
    far, near = (after['D.b4.fc.weight'] - before['D.b4.fc.weight'] for after in (abandoned, redone))
    assert (near / far).median() == pytest.approx(0.25, rel=0.02)
    # a run that stops on the way to the rollback, or after it, resumes to the same bits
    for stop in (0.036, 0.06):
        train_here(guarded(shards, tmp_path / str(stop), total_kimg=stop, **SICK))
        assert not differing(straight, train_here(guarded(shards, tmp_path / str(stop), **SICK)))


def test_ranks_roll_back_together(shards, tmp_path, look):
    one = train_here(guarded(shards, tmp_path / 'one', **SICK))
    two, other = on_ranks(2, rolled_back, guarded(shards, tmp_path / 'two', **SICK))
    assert not differing(two, other) and two['nimg'] == 96 and two['scalars.rollbacks'] == one['scalars.rollbacks'] == 1


def test_rollbacks_are_counted_and_then_the_run_stops(shards, tmp_path, capsys):
    path, settings = tmp_path / 'c.yaml', {'action': 'rollback', 'thresholds': ALWAYS, 'rollbacks': 2}
    path.write_text(yaml.safe_dump(guarded_tree(shards, tmp_path / 'run', **settings)))
    assert main([str(path)]) == GUARD_STATUS
    out, _ = capsys.readouterr()
    assert out.count('went back from 0.048 to 0.024') == 2 and 'stopped by the guard at 0.048' in out
    assert main([str(path)]) == GUARD_STATUS
    kept = {folder.name for folder in (tmp_path / 'run' / 'checkpoints').glob('abandoned-*')}
    assert kept == {f'abandoned-{count}-000000000036' for count in (1, 2)}
    assert read_checkpoint(tmp_path / 'run' / 'checkpoints' / '000000000048')['scalars.rollbacks'] == 2


def test_without_a_checkpoint_from_before_it_stops(shards, tmp_path):
    tree = guarded_tree(shards, tmp_path / 'run', action='rollback', thresholds=ALWAYS)
    tree['checkpoint'] = {'interval_kimg': 1.0}
    path = tmp_path / 'c.yaml'
    path.write_text(yaml.safe_dump(tree))
    assert main([str(path)]) == GUARD_STATUS
    assert [folder.name for folder in list_checkpoints(tmp_path / 'run' / 'checkpoints')] == ['000000000048']


@pytest.mark.parametrize('change, message', [
    ({'thresholds': {'diversty': 1.0}}, 'diversty'), ({'lr_factor': 1.0}, 'guard.lr_factor'),
    ({'pictures': 4}, 'guard.pictures')])
def test_settings_that_make_no_sense_are_refused(shards, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        guarded(shards, tmp_path, **change)


def test_held_out_pictures_are_other_ones_of_the_kind(shards, tmp_path):
    manifest = open_dataset(shards).manifest
    others = write_dataset(tmp_path / 'a', (5,), classes=2, size=16), write_dataset(tmp_path / 'b', (5,), classes=3, size=8)
    for folder, message in zip((shards, *others), ('is the training data itself', 'has other classes', '8x8'), strict=True):
        with pytest.raises(ValueError, match=message):
            guard.open_held_out(guarded(shards, tmp_path, conditional=True, data=str(folder)), manifest)
