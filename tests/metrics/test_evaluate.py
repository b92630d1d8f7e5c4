"""`imago evaluate` and evaluation while training see each picture once, and give the same on any number of ranks."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from peers_for_tests import write_extractor
from PIL import Image
from runs_for_tests import differing, on_ranks, tiny_config, train_here
from shards_for_tests import picture, rewrite_shard, write_dataset
from torch import nn

from imago.trainer.config.load import load_config
from imago.trainer.data.shards import open_dataset
from imago.trainer.games.makers import LatentMaker, Sampling
from imago.trainer.metrics import features, outlook, reference
from imago.trainer.metrics.extractors import Extractor
from imago.trainer.metrics.perceptual_path_length import perceptual_path_lengths
from imago.trainer.metrics.pictures import Fakes, ShardPictures
from imago.trainer.ranks import dist, progress
from imago.trainer.runs.export import build_maker, describe, load_generator, open_maker, write_export
from imago.trainer.tools import evaluate

USUAL = '--images 50000 for as many as published scores take'
ALL = 'fid,kid,is,precision,recall,density,coverage,ppl,intra_fid'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGO_METRICS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture(scope='module')
def patches(tmp_path_factory):
    return write_extractor(tmp_path_factory.mktemp('extractor') / 'patches.pt')


@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('evaluated') / 'run'
    train_here(tiny_config(shards, folder, data={'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True}))
    return folder


def scores(capsys, *arguments):
    status = evaluate.main([*map(str, arguments), '--json'])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def on_a_rank(cache, arguments):
    """In a process of `on_ranks`: what rank 0 prints."""
    os.environ['IMAGO_METRICS_CACHE'] = cache
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert evaluate.main(arguments) == 0
    return out.getvalue()


def test_a_run_is_scored_against_its_own_data_and_keeps_the_result(run, patches, capsys):
    before = len((run / 'metrics.jsonl').read_text().splitlines()) if (run / 'metrics.jsonl').exists() else 0
    found = scores(capsys, run, '--metrics', ALL, '--images', 40, *patches)
    assert list(found['values']) == ['fd_patches', 'kid_patches', 'is_patches', 'precision_patches', 'recall_patches',
                                     'density_patches', 'coverage_patches', 'ppl_patches', 'intra_fd_patches']
    assert all(low <= found['values'][name] <= high for name, (low, high) in found['intervals'].items())
    assert found['values']['ppl_patches'] > 0 and found['nimg'] == 48
    about = found['protocol']
    assert about.items() >= {'extractor': 'patches', 'resizer': 'clean', 'fakes': 40, 'reals': 30, 'psi': 1,
                             'psi_cutoff': None, 'truncation': None, 'noise': 'random', 'reals_at_most': 50000, 'seed': 0,
                             'resolution': [16, 16], 'intra_fid_classes': 3}.items()
    kept = (run / 'metrics.jsonl').read_text().splitlines()
    assert len(kept) == before + 1 and json.loads(kept[-1]) == found


def test_the_same_on_one_and_on_three_ranks(run, shards, patches, tmp_path, capsys):
    """70 fakes and 30 reals: the last chunks are neither whole nor there for every rank."""
    source = noisy(run, tmp_path / 'export')
    arguments = [str(source), '--data', str(shards), '--metrics', ALL, '--images', '70', *patches, '--json']
    one = scores(capsys, *arguments[:-1])
    three = on_ranks(3, on_a_rank, str(tmp_path / 'other'), arguments)
    assert three[1] == three[2] == ''
    three = json.loads(three[0])
    assert {**one, 'time': 0} == {**three, 'time': 0}   # to the last bit
    assert (one['protocol']['fakes'], one['protocol']['reals']) == (70, 30)


def test_each_part_tells_how_far_it_is(run, shards, patches, capsys, monkeypatch):
    arguments = [str(run), '--data', str(shards), '--metrics', ALL, '--images', '40', *patches, '--json']
    assert evaluate.main(arguments) == 0
    line, = capsys.readouterr().err.splitlines()      # short work tells nothing else
    assert f'40 fakes ({USUAL}) against 30 real ones; features of patches, on cpu' in line
    monkeypatch.setattr(progress, 'SECONDS', 0.0)
    shutil.rmtree(os.environ['IMAGO_METRICS_CACHE'])
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)['protocol']['fakes'] == 40
    for part in ('reals: 30 of 30 pictures', 'fakes: 32 of 40 pictures', 'fakes: 40 of 40 pictures', 'paths: 40 of 40 pictures',
                 'intervals: 20 of 20 resamples', 'neighbours: 40 of 40 pictures'):
        assert f'{part} in ' in printed.err


def test_long_work_is_measured_before_it_begins(run, shards, patches, capsys, monkeypatch):
    """Each fake costs a second here, twice as much on the path, and each real half a second."""
    class Clock:
        now = 0.0
    monkeypatch.setattr(outlook.time, 'perf_counter', lambda: Clock.now)
    monkeypatch.setattr(outlook, 'FEW', 30)

    def slowly(make, each):
        def made(self, what):
            Clock.now += each * (len(what) if isinstance(what, range) else 1)
            return make(self, what)
        return made
    monkeypatch.setattr(Fakes, 'make', slowly(Fakes.make, 1.0))
    monkeypatch.setattr(ShardPictures, 'read', slowly(ShardPictures.read, 0.5))
    on = 'features of patches, on cpu, which take about'
    for metrics, told in (('kid', f'40 fakes ({USUAL}) against 30 real ones; {on} 0m55s'),
                          ('kid,ppl', f'against 30 real ones, whose features are kept; {on} 2m00s'),
                          ('ppl', f'40 fakes ({USUAL}); {on} 1m20s')):
        assert evaluate.main([str(run), '--metrics', metrics, '--images', '40', *patches]) == 0
        assert told in capsys.readouterr().err


def test_a_trial_is_repeated_until_it_is_warm_and_never_when_it_takes_long(monkeypatch):
    for times, counted in (([4.0, 0.5, 0.75], 0.5), ([9.0], 9.0)):
        spans, clock = iter(times), [0.0]
        monkeypatch.setattr(outlook.time, 'perf_counter', lambda clock=clock: clock[0])

        def work(spans=spans, clock=clock):
            clock[0] += next(spans)
        assert outlook.seconds(work) == counted and next(spans, None) is None


def test_scores_are_kept_though_nobody_reads_them(run, shards, patches, capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, 'Broken pipe')

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)
    before = len((run / 'metrics.jsonl').read_text().splitlines())
    with monkeypatch.context() as patch:
        patch.setattr('sys.stdout', Closed())
        assert evaluate.main([str(run), '--metrics', 'kid', '--images', '40', *patches]) == 141
    assert 'error' not in capsys.readouterr().err
    assert len((run / 'metrics.jsonl').read_text().splitlines()) == before + 1


def test_each_picture_counts_once_and_damaged_ones_do_not(shards, patches, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features, 'CHUNK', 8)
    whole = ShardPictures(open_dataset(shards), (16, 16), 100, 0)

    def read(part):
        return {'pixels': np.stack([whole.read(index)[0] for index in part])}
    rows = features.over_ranks(read, whole.count, '', lambda: False)
    wanted = [np.asarray(Image.open(io.BytesIO(picture(i, 'png', 16)))) for i in range(30)]
    assert np.array_equal(rows['pixels'], np.stack(wanted))
    some = ShardPictures(open_dataset(shards), (16, 16), 12, 3)
    drawn = {some.read(i)[0].tobytes() for i in range(12)}
    assert len(drawn) == 12 and drawn <= {pixels.tobytes() for pixels in wanted}
    shutil.copytree(shards, tmp_path / 'damaged')
    tar = (tmp_path / 'damaged' / 'shard-00001.tar').read_bytes()
    at = tar.index(b'\x89PNG')
    rewrite_shard(tmp_path / 'damaged', 1, tar[:at] + b'XXXX' + tar[at + 4:])
    assert evaluate.main([str(tmp_path / 'damaged'), '--data', str(shards), *patches, '--json']) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)['protocol']['fakes'] == 29
    assert 'skipped damaged picture shard-00001.tar/000000013.png' in printed.err


def test_the_reference_is_computed_once_and_again_when_damaged(shards, patches, cache, tmp_path, capsys, monkeypatch):
    other = write_dataset(tmp_path / 'other', (20,), size=16)
    count = {'reals': 0}

    def counted(pictures, extractor, classes, title, stopped, original=features.features_of_pictures):
        count[title] = count.get(title, 0) + 1
        return original(pictures, extractor, classes, title, stopped)
    monkeypatch.setattr(reference, 'features_of_pictures', counted)
    first = scores(capsys, other, '--data', shards, *patches)
    assert scores(capsys, other, '--data', shards, *patches)['values'] == first['values'] and count['reals'] == 1
    kept, = cache.glob('*.safetensors')
    data = bytearray(kept.read_bytes())
    data[-3] ^= 1
    for damage in (bytes(data), bytes(data[:500]), b''):
        kept.write_bytes(damage)
        assert evaluate.main([str(other), '--data', str(shards), *patches, '--json']) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)['values'] == first['values']
        assert 'is damaged' in printed.err and 'computed again' in printed.err
    assert count['reals'] == 4
    # other pictures, another network or another resizer must not take these features
    scores(capsys, other, '--data', shards, '--reals', 20, *patches)
    scores(capsys, other, '--data', shards, '--resizer', 'legacy', *patches)
    scores(capsys, other, '--data', shards, '--extractor-mean', 0, 0, 0, *patches)
    assert count['reals'] == 7 and not list(cache.glob('*.part'))


def test_two_folders(tmp_path, patches, capsys):
    for folder, seeds in (('a', range(20)), ('b', range(30, 50))):
        (tmp_path / folder / 'sub').mkdir(parents=True)
        for seed in seeds:
            place = tmp_path / folder / ('sub' if seed % 2 else '.')
            (place / f'{seed} é.png').write_bytes(picture(seed, size=8 + seed % 3))
    same = scores(capsys, tmp_path / 'a', '--data', tmp_path / 'a', '--metrics', 'fid,precision,recall', *patches)
    assert same['values']['fd_patches'] == pytest.approx(0, abs=1e-6) and same['nimg'] is None
    assert same['values']['precision_patches'] == same['values']['recall_patches'] == 1
    (tmp_path / 'b' / 'broken.png').write_bytes(b'\x89PNG broken')
    assert evaluate.main([str(tmp_path / 'a'), '--data', str(tmp_path / 'b'), *patches]) == 0
    printed = capsys.readouterr()
    assert '20 pictures against 20 real ones; features of patches, resizer clean' in printed.out
    assert 'skipped damaged picture broken.png' in printed.err
    (tmp_path / 'c').mkdir()
    for number in range(12):
        (tmp_path / 'c' / f'{number}.png').write_bytes(b'\x89PNG broken')
    assert evaluate.main([str(tmp_path / 'c'), '--data', str(tmp_path / 'b'), *patches]) == 2
    assert 'fewer than 10 pictures could be read' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], '--data is missing'),
    (['nowhere', '--data', 'SHARDS'], 'no such folder: nowhere'),
    (['SHARDS', '--data', 'nowhere'], 'no such folder: nowhere'),
    (['RUN', '--metrics', 'fid,fud'], '--metrics'),
    (['RUN', '--images', '3'], '--images 3: Input should be greater than or equal to 10'),
    (['RUN', '--images', '9' * 12], '--images 999999999999: Input should be less than or equal to 10000000'),
    (['RUN', '--seed', '9' * 20], '--seed 99999999999999999999: Input should be less than or equal to 4294967295'),
    (['RUN', '--psi', 'nan'], '--psi nan: Input should be a finite number'),
    (['RUN', '--metrics', ''], "--metrics : Input should be 'fid', 'kid'"),
    (['RUN', '--metrics', 'kid,fid,kid'], 'metrics kid,fid,kid: one is named twice'),
    (['RUN', '--metrics', 'x' * 3000], '--metrics ' + 'x' * 100 + ': Input should be'),
    (['RUN', '--extractor', ''], '--extractor : it is empty; give a path'),
    (['RUN', '--extractor', '/dev/zero'], '/dev/zero is not a regular file'),
    (['RUN', '--extractor-size', '9' * 9, '--extractor', 'x'], '--extractor-size 999999999: Input should be less than'),
    (['RUN', '--reals', '3'], '--reals 3: Input should be greater than or equal to 10'),
    (['RUN', '--reals', 'some'], '--reals some: Input should be a valid integer'),
    (['RUN', '--noise', 'loud'], '--noise loud'),
    (['RUN', '--psi-cutoff', '7'], 'psi-cutoff 7 is outside 0 to 6'),
    (['RUN', '--truncation', '1e-9'], '--truncation 1e-09: Input should be greater than or equal to 0.01'),
    (['RUN', '--resizer', 'dirty'], '--resizer dirty'),
    (['RUN', '--extractor', 'none.pt'], 'no such file'),
    (['RUN', '--truncation', '-1'], '--truncation -1'),
    (['SHARDS', '--data', 'SHARDS', '--metrics', 'ppl'], 'ppl is measured between latents'),
    (['RUN', '--data', 'PLAIN', '--metrics', 'intra_fid'], 'intra_fid needs a conditional model'),
    (['SMALL', '--data', 'SHARDS'], '5 pictures against 30: both must be at least 10'),
])
def test_bad_input_is_one_line_and_status_2(run, shards, tmp_path, capsys, arguments, message):
    places = {'RUN': run, 'SHARDS': shards}
    if {'PLAIN', 'SMALL'} & set(arguments):
        places |= {'PLAIN': write_dataset(tmp_path / 'plain', (20,), size=16),
                   'SMALL': write_dataset(tmp_path / 'small', (5,), size=16)}
    before = (run / 'metrics.jsonl').exists() and (run / 'metrics.jsonl').read_text()
    assert evaluate.main([str(places.get(argument, argument)) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith('imago evaluate: error: ') and told.count('\n') == 1
    assert before == ((run / 'metrics.jsonl').exists() and (run / 'metrics.jsonl').read_text())


def test_scores_are_printed_though_they_cannot_be_kept(run, shards, patches, tmp_path, capsys):
    shutil.copytree(run, tmp_path / 'run')
    (tmp_path / 'run' / 'metrics.jsonl').unlink(missing_ok=True)
    os.mkfifo(tmp_path / 'run' / 'metrics.jsonl')
    assert evaluate.main([str(tmp_path / 'run'), '--images', '20', '--metrics', 'kid', *patches, '--json']) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)['values'] and 'metrics.jsonl is not a regular file' in printed.err


def test_evaluation_while_training_changes_nothing_else(shards, patches, tmp_path, capsys):
    dist.init('cpu')
    section = {'interval_kimg': 0.024, 'metrics': ['kid', 'ppl'], 'images': 40, 'extractor': patches[1], 'extractor_size': 8}
    plain = train_here(tiny_config(shards, tmp_path / 'plain'))
    assert not differing(plain, train_here(tiny_config(shards, tmp_path / 'run', evaluate=section)))
    printed = capsys.readouterr().out
    assert 'evaluation at 0.024 kimg' in printed and 'evaluation at 0.048 kimg' in printed
    kept, reports = ([json.loads(line) for line in (tmp_path / 'run' / name).read_text().splitlines()]
                     for name in ('metrics.jsonl', 'stats.jsonl'))
    assert [entry['nimg'] for entry in kept] == [24, 48] and not (tmp_path / 'plain' / 'metrics.jsonl').exists()
    told = {report['nimg']: report.get('metrics/kid_patches') for report in reports}
    assert told == {12: None, 24: kept[0]['values']['kid_patches'], 36: None, 48: kept[1]['values']['kid_patches']}
    # options default to the run's section, except for a program, which a stranger may have put there
    assert evaluate.main([str(tmp_path / 'run')]) == 2 and 'if you trust that' in capsys.readouterr().err
    assert scores(capsys, tmp_path / 'run', '--extractor', patches[1])['values'] == kept[1]['values']


def train_in_parts(config):
    from imago.trainer.start import prepare
    from imago.trainer.train import train
    train(prepare(config))


def test_networks_in_parts_score_as_whole_ones(shards, patches, tmp_path, cache, capsys):
    section = {'interval_kimg': 0.048, 'metrics': ['fid', 'ppl'], 'images': 40, 'extractor': patches[1], 'extractor_size': 8}
    on_ranks(2, train_in_parts, tiny_config(shards, tmp_path / 'run', evaluate=section, parallel={'strategy': 'fsdp'}))
    kept, = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    assert scores(capsys, tmp_path / 'run', '--extractor', patches[1])['values'] == kept['values']


def test_a_stop_is_not_delayed_by_an_evaluation():
    calls = []

    def stopped():
        calls.append(1)
        return len(calls) == 2
    with pytest.raises(features.Stopped):
        features.over_ranks(lambda part: {'x': np.zeros(len(part))}, 1000, '', stopped)
    assert len(calls) == 2


def test_truncation_and_seed_reach_the_generator(run, patches, capsys):
    values = [scores(capsys, run, '--metrics', 'kid', '--images', 40, *patches, *options)['values']['kid_patches']
              for options in ([], ['--psi', '0.3'], ['--truncation', '0.5'], ['--seed', '1'], [])]
    assert len(set(values)) == 4 and values[0] == values[-1]
    fakes = Fakes(open_maker(run)[0], 64, 0, Sampling(truncation=0.5))
    first, second = fakes.draws(range(32)), fakes.draws(range(32, 64))
    assert first.z.abs().max() <= 0.5 and not torch.equal(first.z, second.z) and not torch.equal(first.labels, second.labels)


def noisy(run, out):
    """An export whose layers add strong noise."""
    folder, about = describe(run)
    maker = build_maker(folder, about)
    G = maker.G
    for name, parameter in G.named_parameters():
        if name.endswith('noise_strength'):
            parameter.fill_(1.0)
    write_export(maker, about, out)
    return out


def test_each_picture_has_its_own_noise(run, tmp_path):
    """With psi 0 pictures of a class differ by their noise alone."""
    maker = LatentMaker({'G': load_generator(noisy(run, tmp_path / 'export'))}, (1, 0, 0))
    random, other, const = (Fakes(maker, 64, seed, Sampling(psi=0.0, noise=noise))
                            for seed, noise in ((0, 'random'), (1, 'random'), (0, 'const')))
    before = torch.get_rng_state()
    made = np.concatenate([random.make(range(32))[0], random.make(range(32, 64))[0], other.make(range(32))[0]])
    assert len({picture.tobytes() for picture in made}) == 96
    assert np.array_equal(random.make(range(32, 64))[0], made[32:64])
    assert len({picture.tobytes() for picture in const.make(range(32))[0]}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_and_layers_of_psi_reach_the_generator_and_the_protocol(run, shards, patches, tmp_path, capsys):
    source = noisy(run, tmp_path / 'export')
    base = [source, '--data', shards, '--metrics', 'kid', '--images', 40, '--psi', '0.5', *patches]
    found = [scores(capsys, *base, *options) for options in
             ([], ['--noise', 'const'], ['--psi-cutoff', '2'], ['--psi-cutoff', '6'], ['--noise', 'random'])]
    values = [each['values']['kid_patches'] for each in found]
    assert len(set(values)) == 3 and values[0] == values[3] == values[4]
    assert [(each['protocol']['noise'], each['protocol']['psi_cutoff']) for each in found] == \
        [('random', None), ('const', None), ('random', 2), ('random', 6), ('random', None)]
    assert evaluate.main([*map(str, base), '--psi-cutoff', '3']) == 0
    assert 'psi 0.5, psi_cutoff 3, noise random; in brackets' in capsys.readouterr().out


def test_all_reals(shards, patches, tmp_path, capsys):
    other = write_dataset(tmp_path / 'other', (20,), size=16)
    every, most, some = (scores(capsys, other, '--data', shards, *patches, '--reals', reals) for reals in ('all', 50000, 29))
    assert every['values'] == most['values'] != some['values']
    assert [each['protocol']['reals_at_most'] for each in (every, most, some)] == ['all', 50000, 29]
    assert every['protocol']['reals'] == 30 and every['protocol']['noise'] is None
    assert evaluate.main([str(other), '--data', str(shards), *patches, '--reals', 'all']) == 0
    assert '20 pictures against all 30 real ones' in capsys.readouterr().out
    assert load_config('dcgan-64', ['data.path=x', 'evaluate.reals=all']).evaluate.most_reals > 10 ** 9


class Straight(nn.Module):
    """A generator whose picture is its w: one pixel, of which the first value is 20."""

    z_dim, num_ws, c_dim, resolution = 3, 1, 0, (1, 1)

    def __init__(self):
        super().__init__()
        self.where = nn.Parameter(torch.zeros(()))

    def mapping(self, z, c, psi, psi_cutoff):
        return (psi * z)[:, None]

    def synthesis(self, ws, noise):
        return torch.cat([torch.full((len(ws), 1), 20.0), ws[:, 0, 1:]], 1)[:, :, None, None]


@pytest.mark.parametrize('psi', [1.0, 0.5])
def test_path_length_of_a_straight_path(psi):
    """The direction of (20, w) turns by |w1 - w0| / 20 per unit of the path, at every place on it."""
    fakes = Fakes(LatentMaker({'G': Straight()}, ()), 70, 0, Sampling(psi))

    def network(x, classes):
        return x.mean((2, 3)).double() / 127.5 - 1, None
    pixels = Extractor('pixels', '', 'clean', None, network, torch.device('cpu'))
    lengths = perceptual_path_lengths(fakes, pixels, '', lambda: False)
    ends = [torch.cat([fakes.draws(range(start, min(start + 32, 70)), name).z for start in (0, 32, 64)]) * psi
            for name in ('path', 'path end')]
    known = ((ends[1] - ends[0])[:, 1:].square().sum(1) / 20 ** 2).numpy()
    assert len(lengths) == 68    # without the tails
    np.testing.assert_allclose(np.sort(lengths), np.sort(known)[1:-1], rtol=0.05)
