"""`imago pack` deletes nothing that it did not write, and refuses places that cannot be meant."""

import json
import os
import shutil
from pathlib import Path

import pytest
from packs_for_tests import folder_of, manifest_of, noise, run, save

from imago.trainer.data.manifest import find_manifest
from imago.trainer.pack import shards as pack_shards


def tree(root: Path) -> dict[str, bytes | None]:
    """All below `root`, with contents."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob('*')}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures `in`, and `out`, a dataset that was packed."""
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / 'in', ['a.png', 'b.png'])
    assert run('in', 'out') == 0
    return tmp_path


def refused(place: Path, capsys: pytest.CaptureFixture, *words: str, flags: tuple[str, ...] = ('--overwrite',)) -> None:
    """Packing ends with one line that has `words`, before any work, and nothing is changed."""
    before = tree(place)
    capsys.readouterr()
    assert run('in', 'out', *flags) == 2 and tree(place) == before
    error = capsys.readouterr().err
    assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and all(word in error for word in words), error


LABELS = json.dumps({'labels': [[f'{i}.png', i % 2] for i in range(30)]})


@pytest.mark.parametrize('text, words', [
    (LABELS, ['no packed dataset', '0.png, 1.png, 10.png', '(33 in all)']), ('{"format": "imago"}', ['no packed dataset']), ('[1]', ['no packed dataset']),
    ('{"format": "imago-shards/1"}', ['imago-shards/1']), ('{"format": "imago-shards/2"}', ['imago-shards/1']),
    ('[' * 100_000, ['nested']), ('no JSON', ['mend']), (None, ['regular'])])
def test_a_file_of_the_name_proves_nothing(place, capsys, text, words):
    """StyleGAN's labels file has the name of a manifest, and `imago pack` once deleted the 30 pictures beside it."""
    folder_of(place / 'out', [f'{i}.png' for i in range(30)])
    (place / 'out' / 'dataset.json').unlink()
    os.mkfifo(place / 'out' / 'dataset.json') if text is None else (place / 'out' / 'dataset.json').write_text(text)
    refused(place, capsys, 'dataset.json', *words)


@pytest.mark.parametrize('foreign', ['mine.png', '.hidden', 'shard-99999.tar', 'dataset.json.tmp', 'a folder', 'a link'])
def test_all_in_the_folder_must_be_ours(place, capsys, foreign):
    path = place / 'out' / foreign
    {'a folder': path.mkdir, 'a link': lambda: path.symlink_to(place / 'in')}.get(foreign, path.touch)()
    refused(place, capsys, foreign)


def test_a_link_in_place_of_a_file_of_ours_is_foreign(place, capsys):
    (place / 'out' / 'shard-00000.tar').rename(place / 'kept.tar')
    (place / 'out' / 'shard-00000.tar').symlink_to(place / 'kept.tar')
    refused(place, capsys, 'shard-00000.tar')


def test_a_shard_of_a_name_that_we_never_write_is_foreign(place, capsys):
    """A manifest may be a stranger's, and list what is not to be deleted."""
    text = (place / 'out' / 'dataset.json').read_text()
    (place / 'out' / 'dataset.json').write_text(text.replace('shard-00000.tar', 'thesis.tar'))
    (place / 'out' / 'shard-00000.tar').rename(place / 'out' / 'thesis.tar')
    refused(place, capsys, 'thesis.tar')


def test_ten_foreign_entries_are_named_and_all_are_counted(place, capsys):
    for number in range(300):
        (place / 'out' / f'note {number:03d}').touch()
    refused(place, capsys, 'note 000', 'note 009 ...', '300 in all')
    run('in', 'out', '--overwrite')
    assert 'note 010' not in capsys.readouterr().err


@pytest.mark.parametrize('beside, content', [
    ('out.tmp-pack', ['shard-00000.tar', 'report.json']), ('out.tmp-pack', ['photo.png']), ('out.tmp-old', ['photo.png']),
    ('out.tmp-old', ['dataset.json', 'shard-00000.tar', 'report.json']), ('out.tmp-old', [])])
def test_folders_that_happen_to_have_our_names_stay(place, capsys, beside, content):
    (place / beside).mkdir()
    for name in content:
        shutil.copy(place / 'out' / name, place / beside / name) if name != 'photo.png' else save(noise(1), place / beside / name)
    refused(place, capsys, beside, 'move it away')
    if beside == 'out.tmp-old':  # nothing is put there where nothing is replaced
        before = tree(place / beside)
        shutil.rmtree(place / 'out')
        assert run('in', 'out') == 0 and tree(place / beside) == before


@pytest.mark.parametrize('kind', ['file', 'link'])
def test_what_is_no_folder_stays(place, capsys, kind):
    path = place / 'out.tmp-pack'
    path.write_text('mine') if kind == 'file' else path.symlink_to(place / 'in')
    before = tree(place)
    assert run('in', 'out', '--overwrite') == 2 and tree(place) == before and 'Traceback' not in capsys.readouterr().err


def test_what_a_killed_run_left_is_removed_but_for_what_is_not_ours(place, capsys):
    left = place / 'out.tmp-pack'
    left.mkdir()
    for name in ('.imago-pack', 'shard-00000.tar', 'shard-00001.tar', 'report.json'):
        (left / name).write_text('of a killed run')
    save(noise(1), left / 'mine.png')
    refused(place, capsys, 'mine.png')
    (left / 'mine.png').unlink()
    assert run('in', 'out', '--overwrite') == 0 and sorted(os.listdir(place)) == ['in', 'out']
    assert sorted(os.listdir('out')) == ['dataset.json', 'report.json', 'shard-00000.tar']


@pytest.mark.parametrize('step', range(6))
def test_a_kill_at_each_step_of_the_exchange_loses_nothing(place, monkeypatch, step):
    """Each step is a rename or the removal of a mark; killed before it, OUT is what it was or what it should be."""
    class Killed(BaseException):
        pass

    counted = []

    def count(function):
        def counting(*arguments, **options):
            if len(counted) >= step:
                raise Killed   # and no step is made after it, as the process is dead
            counted.append(function)
            return function(*arguments, **options)
        return counting

    old, new = tree(place / 'out'), None
    with monkeypatch.context() as patch:
        write = pack_shards._exchange

        def exchange(aside, out, beside):
            nonlocal new
            new = {name: data for name, data in tree(aside).items() if name != '.imago-pack'}
            for name in ('rename', 'unlink', 'touch', 'rmdir'):
                patch.setattr(Path, name, count(getattr(Path, name)))
            write(aside, out, beside)

        patch.setattr(pack_shards, '_exchange', exchange)
        try:
            run('in', 'out', '--overwrite', '--encoding', 'png')
        except Killed:
            pass
    assert len(counted) == step and new != old
    found = next(tree(place / name) for name in ('out', 'out.tmp-old') if (place / name / 'dataset.json').exists())
    found.pop('.imago-pack', None)
    assert found in (old, new)
    assert run('in', 'out', '--overwrite', '--encoding', 'jpeg') == 0 and manifest_of(place / 'out').encoding == 'jpeg'
    assert sorted(os.listdir(place)) == ['in', 'out'] and sorted(os.listdir('out')) == [
        'dataset.json', 'report.json', 'shard-00000.tar']


def test_an_empty_folder_in_the_place_of_what_was_to_be_replaced_costs_nothing(place):
    before = tree(place / 'out')
    (place / 'out' / '.imago-pack').touch()
    (place / 'out').rename(place / 'out.tmp-old')
    (place / 'out').mkdir()
    assert run('in', 'out') == 2 and tree(place / 'out') == before


def test_what_appears_while_we_pack_is_not_deleted(place, capsys, monkeypatch):
    monkeypatch.setattr(pack_shards, 'sync_folder', lambda folder: (place / 'out' / 'late.png').write_text('mine'))
    assert run('in', 'out', '--overwrite') == 2 and (place / 'out' / 'late.png').read_text() == 'mine'
    assert 'late.png' in capsys.readouterr().err and sorted(os.listdir(place)) == ['in', 'out']


def test_a_failed_run_leaves_no_folders(place):
    (place / 'in' / 'a.png').write_text('none')
    assert run('in', 'new/deep/out', '--resolution', 32, '--strict') == 2 and sorted(os.listdir(place)) == ['in', 'out']


@pytest.mark.parametrize('source, out, words', [
    ('in', '', 'OUT'), ('', 'new', 'SOURCE'), (' ', 'new', 'SOURCE'), ('in', '~/new', '~'), ('~', 'new', '~'),
    ('in', 'a/~/b', '~'), ('in', 'in/new', 'inside SOURCE'), ('in', 'loop', 'loop'), ('out', 'out', 'replaced'),
    ('out/shard-00000.tar', 'out', 'replaced'), ('out/shard-0000{0..0}.tar', 'out', 'replaced')])
def test_places_that_cannot_be_meant(place, capsys, source, out, words):
    (place / 'loop').symlink_to('loop')
    before = tree(place)
    assert run(source, out, '--overwrite') == 2 and tree(place) == before
    error = capsys.readouterr().err
    assert error.startswith('imago pack: error: ') and error.count('\n') == 1 and words in error
    assert run('in', 'new', '--labels', '') == 2 and '--labels' in capsys.readouterr().err


def test_find_manifest(place):
    assert find_manifest(place / 'out') == manifest_of(place / 'out')
    assert find_manifest(place / 'in') is None and find_manifest(place / 'absent') is None
    assert find_manifest(place / 'in' / 'a.png') is None
    (place / 'in' / 'dataset.json').write_text(LABELS)
    assert find_manifest(place / 'in') is None
    (place / 'in' / 'dataset.json').unlink()
    (place / 'in' / 'dataset.json').symlink_to('/dev/zero')
    with pytest.raises(ValueError, match='regular'):
        find_manifest(place / 'in')


def test_tars_beside_a_dataset_json_of_another_kind(place):
    (place / 'out' / 'dataset.json').write_text(LABELS)
    assert run('out', 'again') == 0 and manifest_of(place / 'again').num_samples == 2
