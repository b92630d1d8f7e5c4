"""A manifest that may be a stranger's: each field is checked when it is read."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from shards_for_tests import write_dataset

from imago.trainer.data.manifest import Manifest
from imago.trainer.data.shards import open_dataset

EMOJI = Path(__file__).parent / 'fluent-emoji'
DELETED = object()


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return (write_dataset(tmp_path_factory.mktemp('data') / 'packed', (4, 3), classes=2) / 'dataset.json').read_text()


def changed(text: str, key: str, value: object) -> str:
    tree = json.loads(text)
    part, _, name = key.rpartition('.')
    place = tree if not part else tree['shards'][int(part)]
    if value is DELETED:
        del place[name]
    else:
        place[name] = value
    return json.dumps(tree)


NAMES = ['../a.tar', '/etc/passwd', 'a/b.tar', '', '.', '..', '.hidden.tar', '-rf', 'a b.tar', 'a;touch X', '$(touch X)',
         'a\n.tar', "a'.tar", 'ä.tar', 'a%2e.tar', 'a' * 300, 7, None, ['a.tar']]
SUMS = ['0' * 63, '0' * 65, 'A' * 64, '../' * 20 + 'home', '0' * 63 + '\n', 7, ['0' * 64], True]
COUNTS = [0, -1, 1.5, True, '4', None, [4], 10**15, 10**30]
WRONG = [
    *[('0.name', name) for name in NAMES], ('1.name', 'shard-00000.tar'),
    *[('0.sha256', value) for value in (*SUMS, None, '')], *[('0.checksums', value) for value in (*SUMS, '')],
    *[('0.samples', value) for value in (*COUNTS, 3)], *[('0.bytes', value) for value in (*COUNTS[:-2], 4095, 10**30)],
    *[('1.first', value) for value in (0, 3, 5, 4.0, '4', None, True)], ('0.extra', 1),
    ('0.bytes', DELETED), ('0.sha256', DELETED), *[('num_samples', value) for value in (*COUNTS, 6, 8)],
    *[('resolution', value) for value in (0, [], [0, 8], [8], [8, 8, 8], [8, -8], [8.0, 8], [True, 8], '88', {'8': 8}, 10**6,
                                          [10**6, 8], False, '')],
    *[('channels', value) for value in (0, 2, 4, -3, 3.0, True, '3', None, [3], 10**15)],
    *[('encoding', value) for value in ('', 'gif', 'PNG', None, 3, ['png'])],
    *[('class_names', value) for value in ([], ['a'], ['a', 1], ['a', None], 'ab', None, {'a': 0, 'b': 1}, [['a'], ['b']])],
    *[('class_counts', value) for value in ([], [4], [4, 2], [8, -1], [7.0, 0], ['4', '3'], [True, 6], '43', None, {'4': 3})],
    ('format', 'imago-shards/2'), ('format', None), ('format', DELETED), ('shards', []), ('shards', {}), ('shards', [[]]),
    ('shards', None), ('class_names', DELETED), ('num_samples', DELETED), ('unknown', 1)]


@pytest.mark.parametrize('key, value', WRONG, ids=lambda value: 'deleted' if value is DELETED else repr(value)[:30])
def test_a_field_that_cannot_be_is_refused_in_one_line(text, key, value):
    with pytest.raises(ValueError, match='^the place is not a imago-shards/1 manifest ') as caught:
        Manifest.from_json(changed(text, key, value), 'the place')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize('odd', ['', '[]', 'null', '7', '"x"', '{}', '{', '[' * 100_000, '{"a":' * 100_000, '9' * 10_000,
                                 '\ud800'], ids=lambda odd: odd[:5])
def test_what_is_no_manifest_at_all_is_refused_in_one_line(odd):
    with pytest.raises(ValueError, match='is not a imago-shards/1 manifest') as caught:
        Manifest.from_json(odd, 'the place')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize('key, value', [('resolution', None), ('0.name', 'A_1.b-c'), ('0.checksums', DELETED),
                                        ('0.checksums', None), ('channels', 1), ('encoding', 'webp'), ('class_counts', [7, 0]),
                                        ('0.bytes', 10**12)])
def test_what_can_be_is_read(text, key, value):
    Manifest.from_json(changed(text, key, value), 'the place')


def test_a_manifest_is_written_as_it_was_read(text):
    """It is the same byte for byte, as runs remember the digest of the manifest that they were trained with."""
    new = (EMOJI / 'dataset.json').read_text()
    fields = json.loads(new)
    for shard in fields['shards']:
        del shard['checksums']
    old = json.dumps(fields, indent=1) + '\n'      # as they were written before there were checksums
    for written in (text, new, old):
        assert Manifest.from_json(written, 'the place').to_json() == written
    assert text.count('"checksums"') == 2 and Manifest.from_json(old, '').digest() == hashlib.sha256(old.encode()).hexdigest()


def test_a_stranger_chooses_no_word_of_a_command(text, tmp_path):
    """In pipe:ssh host cat /data/{} a second shell would read the name of the shard."""
    manifest = Manifest.from_json(text, '')
    shards = (replace(manifest.shards[0], name=f'$(touch {tmp_path}/trace)'), *manifest.shards[1:])
    replace(manifest, shards=shards).write(tmp_path)
    with pytest.raises(ValueError, match='is no name of a shard'):
        open_dataset(f"pipe:sh -c 'cat {tmp_path}/'{{}}", cache_dir=tmp_path / 'cache')
    assert not (tmp_path / 'trace').exists()
