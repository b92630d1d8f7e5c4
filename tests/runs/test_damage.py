"""Nothing that is damaged is used: files with checksums show any damage, and an older checkpoint takes the place of a bad one."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from runs_for_tests import tiny_config, train_here

from imago.trainer.data.sealed import CHECKSUM, read_sealed, write_sealed
from imago.trainer.metrics import record
from imago.trainer.ranks import dist
from imago.trainer.runs import checkpoint, export
from imago.trainer.runs.checkpoint import SEAL, find_damage, list_checkpoints
from imago.trainer.runs.export import ABOUT, WEIGHTS, describe, load_generator, open_maker
from imago.trainer.runs.run_folder import read_config
from imago.trainer.start import prepare
from imago.trainer.tools import compare, sample
from imago.trainer.tools import export as export_tool
from imago.trainer.train import train

FLIPS = 40      # of each file, a bit each
FIRST, OLDER, NEWEST = '000000000024', '000000000048', '000000000072'


@pytest.fixture(scope='module')
def finished(shards, tmp_path_factory):
    """A conditional run with checkpoints at 24, 48 and 72 images, and its export beside it."""
    dist.init('cpu')
    folder = tmp_path_factory.mktemp('finished')
    config = tiny_config(shards, folder / 'run', total_kimg=0.072, data={'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True})
    train_here(config)
    assert export_tool.main([str(folder / 'run'), str(folder / 'export')]) == 0
    return config


@pytest.fixture
def config(finished, tmp_path):
    """The finished run in a folder of its own, with its export beside it."""
    shutil.copytree(Path(finished.run_dir).parent, tmp_path, dirs_exist_ok=True)
    return finished.model_copy(update={'run_dir': str(tmp_path / 'run')})


@pytest.fixture(autouse=True)
def no_hanging():
    """A read that waits for a pipe's other end fails in place of hanging the suite."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it hangs'))
    signal.alarm(100)
    yield
    signal.alarm(0)


def checkpoints_of(config):
    return Path(config.run_dir) / 'checkpoints'


def flips(path: Path):
    """At each turn another bit of the file is flipped; in the end the file is as it was."""
    good = path.read_bytes()
    bits = 8 * len(good)
    for bit in range(0, bits, bits // FLIPS | 1):   # an odd step, so that each bit of a byte has its turn
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield
    path.write_bytes(good)


def as_before(folder: Path) -> None:
    """Rewrite a seal as checkpoints had it before seals had checksums of themselves."""
    seal = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps({key: seal[key] for key in seal if key not in ('kernels', CHECKSUM)}, indent=1))


def test_a_sealed_file_says_what_was_written_or_nothing(tmp_path):
    path, tree = tmp_path / 'facts.json', {'b': [1, 2.5, None], 'a': {'ü': True, 'z': {8: 'eight', 16: 'sixteen'}}}
    write_sealed(path, tree)
    facts = read_sealed(path, ())
    assert facts.pop(CHECKSUM) and facts == json.loads(json.dumps(tree))
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))    # spaces and line ends say nothing
    assert read_sealed(path, ()) == json.loads(text)
    harmless = 0
    for number in range(8 * len(text)):
        flipped = bytearray(text.encode())
        flipped[number // 8] ^= 1 << number % 8
        path.write_bytes(flipped)
        try:
            assert read_sealed(path, ('a', 'b')) == json.loads(text)
            harmless += 1
        except ValueError as error:
            assert 'facts.json is damaged: ' in str(error)
    assert harmless == 2    # F and C in the escape of an umlaut
    path.write_text(json.dumps(tree))
    assert CHECKSUM not in read_sealed(path, ('a', 'b', 'c'))
    for other in ('[1]', 'null', '[' * 100_000, '{"a": 1, "c": 2}', f'{{"a": {"9" * 5000}}}'):
        path.write_text(other)
        with pytest.raises(ValueError, match='facts.json is damaged: '):
            read_sealed(path, ('a', 'b'))


@pytest.mark.parametrize('name', [SEAL, '.metadata'])
def test_a_flipped_bit_in_a_checkpoint_leads_to_the_older_one(config, capsys, name):
    newest, about = describe(config.run_dir)
    passed_over = 0
    for _ in flips(newest / name):
        found, said = describe(config.run_dir), f'warning: checkpoint {newest} is passed over: ' in capsys.readouterr().err
        assert said and found[0].name == OLDER or found == (newest, about)
        passed_over += said
    assert passed_over > FLIPS // 2
    assert describe(config.run_dir) == (newest, about)
    next(flips(newest / name))
    assert prepare(config).state.nimg == 48
    assert f'warning: checkpoint {newest} is damaged' in capsys.readouterr().out


def test_a_flipped_bit_in_an_export_is_not_used(config):
    folder = Path(config.run_dir).parent / 'export'
    about = describe(folder)[1]
    for name in (ABOUT, WEIGHTS):
        for _ in flips(folder / name):
            with pytest.raises(ValueError, match=f'{name} is damaged'):
                load_generator(folder)
    assert describe(folder)[1] == about and load_generator(folder)


def test_what_cannot_be_checked_gives_no_traceback(config, capsys):
    """A flip in an old seal can pass for another configuration. It is refused in one line, or used with a warning."""
    newest = checkpoints_of(config) / NEWEST
    as_before(newest)
    for _ in flips(newest / SEAL):
        try:
            found = describe(config.run_dir)[0]
            assert found.name == OLDER or 'it cannot be checked' in capsys.readouterr().err
        except ValueError as error:
            assert '\n' not in str(error)


def edit_seal(folder: Path, **changes: object) -> None:
    """Edit a seal like someone who does not know of the checksum."""
    seal = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps(seal | changes))


def reseal(folder: Path, **changes: object) -> None:
    write_sealed(folder / SEAL, json.loads((folder / SEAL).read_text()) | changes)


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to(device: str):
    def put(path: Path) -> None:
        path.unlink()
        path.symlink_to(device)
    return put


def renamed_older(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name(OLDER), folder)


def renamed_and_resealed(folder: Path) -> None:
    renamed_older(folder)
    reseal(folder, nimg=72)


SPOILT = {
    'another count': (lambda folder: edit_seal(folder, nimg=7), 'checksum'),
    'another count, resealed': (lambda folder: reseal(folder, nimg=7), 'is of 7 images, not of as many as its folder'),
    'other classes': (lambda folder: edit_seal(folder, generator={}), 'checksum'),
    'no facts': (lambda folder: (folder / SEAL).write_text('null'), 'facts by their names'),
    'facts of another kind': (lambda folder: reseal(folder, files=5), 'files: Input should be a valid dict'),
    'an older one under its name': (renamed_older, 'is of 48 images'),
    'an older one resealed under its name': (renamed_and_resealed, 'its tensors are of 48 images, its seal says 72'),
    'its name lost its checksum': (lambda folder: (folder / SEAL).write_text(
        (folder / SEAL).read_text().replace(CHECKSUM, 'chacksum')), 'checksum'),
    'a seal of before, with a configuration that is none': (
        lambda folder: (as_before(folder), edit_seal(folder, config={})), 'run_dir is missing'),
    'metadata that is no pickle': (lambda folder: (
        (folder / '.metadata').write_bytes(b'x'), reseal(folder, files={'.metadata': checkpoint._checksum(folder / '.metadata')})),
        'damaged or forged'),
    **{f'{what} for {name}': (lambda folder, put=put, name=name: put(folder / name), 'not a regular file')
       for name in (SEAL, '.metadata', '__0_0.distcp')
       for what, put in {'a pipe': put_pipe, 'endless zeros': link_to('/dev/zero'), 'a folder': lambda path: (
           path.unlink(), path.mkdir())}.items()},
}


@pytest.mark.parametrize('spoil, why', SPOILT.values(), ids=SPOILT)
def test_what_is_wrong_with_one_checkpoint_leads_to_the_next(config, capsys, caplog, tmp_path, spoil, why):
    newest = checkpoints_of(config) / NEWEST
    spoil(newest)
    assert why in find_damage(newest)
    assert open_maker(config.run_dir)[1]['nimg'] == 48
    assert sample.main([config.run_dir, '--out', str(tmp_path / 'pictures'), '--seeds', '0']) == 0
    assert why in capsys.readouterr().err
    assert prepare(config).state.nimg == 48
    assert not [record for record in caplog.records if record.exc_info], 'torch has told of it in stack traces'
    assert [path.name for path in list_checkpoints(newest.parent)] == [FIRST, OLDER] and (newest.parent / f'damaged-{NEWEST}').exists()


@pytest.mark.parametrize('put', [put_pipe, link_to('/dev/zero')], ids=['a pipe', 'endless zeros'])
def test_only_files_are_read_and_written(config, put):
    """This holds for every file of an export, and for the files of a run outside its checkpoints."""
    run = Path(config.run_dir)
    for name in (ABOUT, WEIGHTS):
        folder = shutil.copytree(run.parent / 'export', run.parent / f'spoilt-{name}')
        put(folder / name)
        with pytest.raises(ValueError, match=f'{name}.* not a regular file'):
            load_generator(folder)
    shutil.copy(run / 'config.yaml', run / 'config.yaml.tmp')
    put(run / 'config.yaml.tmp')
    assert prepare(config).state.nimg == 72 and not (run / 'config.yaml.tmp').exists()
    put(run / 'stats.jsonl')
    with pytest.raises(OSError):
        train(prepare(config))
    (run / 'metrics.jsonl').write_text('')
    put(run / 'metrics.jsonl')
    with pytest.raises(OSError):
        record.append(run, {})
    put(run / 'config.yaml')
    with pytest.raises(ValueError, match='not a run folder'):
        read_config(run)


def test_a_lock_is_not_taken_through_a_link(config):
    lock, other = Path(config.run_dir) / '.lock', Path(config.run_dir).parent / 'mine'
    other.write_text('mine')
    link_to(str(other))(lock)
    with pytest.raises(ValueError, match='cannot be written'):
        prepare(config)
    assert other.read_text() == 'mine'
    put_pipe(lock)
    assert prepare(config).state.nimg == 72


@pytest.mark.parametrize('spoil', [lambda folder: edit_seal(folder, parameters={'G': 1, 'D': 1}),
                                   lambda folder: reseal(folder, parameters={}), lambda folder: reseal(folder, config={})])
def test_compare_reads_the_older_seal(config, capsys, spoil):
    spoil(checkpoints_of(config) / NEWEST)
    evaluation = {'nimg': 48, 'values': {'kid': 1.0}, 'intervals': {'kid': [0.9, 1.1]}, 'protocol': dict.fromkeys(
        (*compare.MUST_AGREE, *compare.SHOULD_AGREE))}
    (Path(config.run_dir) / 'metrics.jsonl').write_text(json.dumps(evaluation) + '\n')
    assert compare.main([config.run_dir, '--json']) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]['parameters']['G'] > 1 and f'{NEWEST} is passed over' in printed.err


def test_a_configuration_of_another_version_is_refused_and_nothing_is_set_aside(config):
    """Its seal is whole, so that this is not damage."""
    newest = checkpoints_of(config) / NEWEST
    seal = json.loads((newest / SEAL).read_text())
    reseal(newest, config=seal['config'] | {'invented_later': 1})
    with pytest.raises(ValueError, match='unknown key invented_later'):
        prepare(config)
    assert [path.name for path in list_checkpoints(newest.parent)] == [FIRST, OLDER, NEWEST]


def test_other_peoples_names_are_left_alone(config):
    """Folders that Imago cannot have made are no checkpoints, and no file is in the way of what it sets aside."""
    folder = checkpoints_of(config)
    for name in ('5', '9٣', '12²', '000000000099x', '0000000000099'):
        (folder / name).mkdir()
    for name in ('000000000096', f'damaged-{NEWEST}', f'damaged-{NEWEST}-2', '.writing-x', '.writing-000000000077'):
        (folder / name).write_text('mine')
    before = {path.name for path in folder.iterdir()}
    (folder / '.writing-000000000060').mkdir()     # what a killed save leaves
    (folder / NEWEST / SEAL).unlink()
    run = prepare(config.model_copy(update={'total_kimg': 0.096}))
    assert run.state.nimg == 48
    assert {path.name for path in folder.iterdir()} == before - {NEWEST} | {f'damaged-{NEWEST}-3'}
    train(run)
    assert {path.name for path in folder.iterdir()} == before - {FIRST} | {f'damaged-{NEWEST}-3', 'damaged-000000000096'}
    assert [path.name for path in list_checkpoints(folder)] == [OLDER, NEWEST, '000000000096']
    assert (folder / 'damaged-000000000096').read_text() == 'mine'


@pytest.mark.parametrize('moment', ['while it is checked', 'before its tensors are read'])
def test_a_checkpoint_that_is_pruned_meanwhile_is_no_failure(config, monkeypatch, capsys, moment):
    """A run with `checkpoint.keep=1` does this between two looks: the newest checkpoint goes, and a newer one is there."""
    folder = checkpoints_of(config)
    (folder / NEWEST).rename(folder / 'later')

    def pruned(work):
        def first_prune(*arguments, **options):
            if (folder / 'later').exists():
                (folder / 'later').rename(folder / NEWEST)
                for name in (FIRST, OLDER):
                    shutil.rmtree(folder / name)
            return work(*arguments, **options)
        return first_prune

    name = {'while it is checked': 'find_damage', 'before its tensors are read': 'load_tensors'}[moment]
    monkeypatch.setattr(export, name, pruned(getattr(export, name)))
    assert open_maker(config.run_dir)[1]['nimg'] == 72
    assert 'passed over' not in capsys.readouterr().err


def test_a_best_checkpoint_that_is_followed_by_another_meanwhile(config, monkeypatch):
    folder = checkpoints_of(config)
    (folder / 'best').symlink_to(OLDER)
    build = export.build_maker

    def build_later(*arguments):
        if (folder / OLDER).exists():
            shutil.rmtree(folder / OLDER)
            (folder / 'best').unlink()
            (folder / 'best').symlink_to(FIRST)
        return build(*arguments)
    monkeypatch.setattr(export, 'build_maker', build_later)
    assert open_maker(folder / 'best')[1]['nimg'] == 24
