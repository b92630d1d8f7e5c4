"""What a location is, and what of it is hidden."""

import subprocess
import sys
from pathlib import Path

import pytest

from imago.trainer.data.locations import (
    could_hold_secrets,
    is_folder,
    is_masked,
    lacks_only_password,
    masked,
    scheme_of,
)
from imago.trainer.data.shards import open_dataset

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('location, scheme', [
    ('shards', ''), ('/data/shards/', ''), ('./a:b', ''), ('data/a:b', ''), ('2024-05-01_10:30', ''), ('./~', ''), ('a b {}', ''),
    ('öl', ''), ('https://host/folder', 'https'), ('http://[::1]:8000/a@b', 'http'), ('https://a:b%40@host/x?sig=1', 'https'),
    ('pipe:ssh host cat /data/{}', 'pipe'), ('gs://bucket/a/b', 'gs'), ('hf://datasets/a/b', 'hf'), ('hf://a/b@v1.0/c/d', 'hf')])
def test_what_is_a_location(location, scheme):
    assert scheme_of(location) == scheme


ODD = {
    'PIPE:touch X; cat {}': "no reader for 'PIPE'", ' pipe:touch X; cat {}': "no reader for ' pipe'",
    '\x01pipe:touch X; cat {}': 'control character', 'pi\tpe:touch X; cat {}': 'control character', 'pipe:cat {}\n': 'line break',
    'pipe\u2028:cat {}': 'line break', 'pi pe:cat {}': "no reader for 'pi pe'", 'ｐｉｐｅ:cat {}': 'no reader',
    'pipe:cat /data': 'no {} to stand for', 'scp://x/y': "no reader for 'scp'", 'sftp://x/y': 'no reader',
    'ais://x/y': 'no reader', 'file:///etc': 'no reader', 's3://bucket/data': 'use pipe:', 'HTTP://x/y': 'no reader',
    'a:b': './NAME', '': 'it is empty',
    ' ': 'it is empty', '~': 'whole path', '~/shards': 'whole path', 'x' * 9000: '9000 characters', '\0': 'control character',
    'http:/x': 'no URL', 'http://': 'no URL', 'http://host:port/': 'no URL', 'http://host:99999/': 'no URL',
    'http://[::1': 'no URL', 'http://h/a b': '%20', 'http://h/#a': '%23', 'http://h\\@other/': 'no URL', 'http://h/ö': 'no URL',
    'https://a:b/c@h/': '%40', 'gs://bucket/a b': 'letters', 'gs://bucket/$(touch X)': 'letters',
    "gs://b/';touch X": 'letters', 'gs://-v': 'letters',
    'hf://datasets/a': 'OWNER/NAME', 'hf://a/b c': 'OWNER/NAME', 'hf://datasets/a/b@r;x': 'OWNER/NAME'}


@pytest.mark.parametrize('location', ODD)
def test_all_else_is_refused_in_one_line(location):
    with pytest.raises(ValueError) as caught:
        scheme_of(location)
    message = str(caught.value)
    assert ODD[location] in message and message.isprintable() and len(message) < 700
    with pytest.raises(ValueError):
        is_folder(location)
    with pytest.raises(ValueError):
        open_dataset(location)


def test_nothing_rests_on_an_assert(tmp_path):
    """No odd location runs its command, even under -O, which leaves asserts out."""
    script = ('import sys; from imago.trainer.data.shards import open_dataset\n'
              'for location in sys.argv[1:]:\n'
              '    try: open_dataset(location, attempts=1)\n'
              '    except ValueError: print("refused")\n')
    odd = [location.replace('X', str(tmp_path / 'trace')) for location in ODD if 'X' in location]
    done = subprocess.run([sys.executable, '-O', '-c', script, *odd], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ['refused'] * len(odd) and len(odd) > 4, done.stderr
    assert not (tmp_path / 'trace').exists()


def test_a_folder_is_none_of_the_others():
    assert is_folder('/cache') == '/cache'
    for location in ('http://host/cache', 'pipe:cat {}', 'gs://bucket/cache'):
        with pytest.raises(ValueError, match='must be the path of a folder'):
            is_folder(location)


MASKED = {
    'https://alice:pw@host/x': 'https://alice:***@host/x',
    'https://alice:p@w$x@host:8/x@y': 'https://alice:***@host:8/x@y',
    'https://alice:p/w@host/x': 'https://alice:***@host/x',
    'https://:pw@host/x': 'https://:***@host/x',
    'http://alice:$pw@host/x': 'http://alice:***@host/x',
    'https://ghp_0123456789abcdefghij@host/x': 'https://***@host/x',
    'sftp://alice:pw@host/x': 'sftp://alice:***@host/x',
    'https://host/x?a=1&token=pw&b=2': 'https://host/x?a=1&token=***&b=2',
    'https://host/x?sv=1&sig=pw%3D': 'https://host/x?sv=1&sig=***',
    'https://host/x?X-Amz-Signature=pw&X-Amz-Credential=pw': 'https://host/x?X-Amz-Signature=***&X-Amz-Credential=***',
    'https://host/x?key=pw': 'https://host/x?key=***',
    'https://host/x?access_token=pw': 'https://host/x?access_token=***',
    'https://host/x?AWSAccessKeyId=pw&Signature=pw&Expires=1': 'https://host/x?AWSAccessKeyId=***&Signature=***&Expires=1',
    'https://host/x?password=pw': 'https://host/x?password=***',
    'pipe:curl -u alice:pw https://host/{}': 'pipe:curl -u alice:*** https://host/{}',
    'pipe:curl -sfu "alice:p w" https://host/{}': 'pipe:curl -sfu "alice:***" https://host/{}',
    'pipe:curl --user=alice:pw host/{}': 'pipe:curl --user=alice:*** host/{}',
    'pipe:curl https://alice:pw@host/{}': 'pipe:curl https://alice:***@host/{}',
    'pipe:lftp alice:pw@host -e {}': 'pipe:lftp alice:***@host -e {}',
    'pipe:sshpass -p pw ssh host cat {}': 'pipe:sshpass -p *** ssh host cat {}',
    "pipe:curl -H 'Authorization: Bearer pw' host/{}": "pipe:curl -H 'Authorization: Bearer ***' host/{}",
    "pipe:curl -H 'authorization: pw' host/{}": "pipe:curl -H 'authorization: ***' host/{}",
    "pipe:curl -H 'X-Api-Key: pw' host/{}": "pipe:curl -H 'X-Api-Key: ***' host/{}",
    'pipe:fetch --token pw {}': 'pipe:fetch --token *** {}',
    "pipe:DB_PASSWORD='p w' fetch {}": 'pipe:DB_PASSWORD=*** fetch {}'}


@pytest.mark.parametrize('location', MASKED)
def test_secrets_are_masked_and_no_more(location):
    assert masked(location) == masked(MASKED[location]) == MASKED[location]
    assert is_masked(MASKED[location]) and not is_masked(location)
    assert could_hold_secrets(f'path: {MASKED[location]}')


@pytest.mark.parametrize('location', [
    '/data/key=5/token=x/a:b@c', 'shards', 'https://alice@host/x', 'https://host:8080/a@b?monkey=1&page=2', 'http://[::1]:80/a@b',
    'pipe:ssh alice@host cat /data/{}', 'pipe:rsync host:/data@v2/{} -', 'pipe:curl -u alice:$PASSWORD host/{}',
    'pipe:curl -H "Authorization: Bearer $TOKEN" host/{}', 'pipe:curl -H "X-Api-Key: $(cat key)" host/{}', 'gs://bucket/x'])
def test_what_is_no_secret_is_shown(location):
    assert masked(location) == location


def test_only_a_missing_password_can_be_found_elsewhere():
    assert lacks_only_password('https://alice:***@host/x')
    for location in ('https://alice:***@host/x?token=***', 'https://***@host/x', 'pipe:curl -u alice:*** {}'):
        assert not lacks_only_password(location)


def test_files_that_name_a_folder_or_a_public_place_need_no_protection():
    for text in ('path: /data/shards', 'path: https://host/x', 'path: gs://bucket/x'):
        assert not could_hold_secrets(text)
    for text in ('path: pipe:fetch {}', 'path: https://alice@host/x', 'path: https://host/x?code=1'):
        assert could_hold_secrets(text)
