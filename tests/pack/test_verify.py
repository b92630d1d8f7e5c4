"""`imago pack --verify`."""

import os
import shutil

import pytest
from runs_for_tests import tiny_config
from shards_for_tests import copy_dataset, write_dataset

from imago.trainer.data.shards import open_dataset
from imago.trainer.pack.command import main
from imago.trainer.ranks import dist
from imago.trainer.train import prepare


@pytest.fixture(scope='module', params=[True, False], ids=['checksums', 'old'])
def packed(request, tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('data') / 'packed', (7, 5, 8), classes=3, checksums=request.param)


def verify(folder, capfd):
    """Exit status and the lines on stdout."""
    status = main(['--verify', str(folder)])
    return status, capfd.readouterr().out.splitlines()


def flip(path, member, bit=100):
    content = bytearray(path.read_bytes())
    content[content.index(member.encode()) + 512 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_whole_dataset_passes(packed, capfd):
    assert verify(packed, capfd) == (0, ['all 3 shards, of 20 pictures, are as they were packed'])


def test_each_damaged_shard_is_named_once(packed, tmp_path, capfd):
    copy = copy_dataset(packed, tmp_path / 'copy')
    new = open_dataset(copy).manifest.shards[0].checksums is not None
    flip(copy / 'shard-00000.tar', '000000002.png')
    flip(copy / 'shard-00000.tar', '000000004.cls', bit=0)
    flip(copy / 'shard-00002.tar', '000000019.png', bit=8 * -500)   # in the header
    named = '; damaged samples: 000000002, 000000004', '; damaged samples: 000000019'
    wrong = [f'shard-0000{number}.tar: its SHA-256 is not the one in the manifest{samples if new else ""}'
             for number, samples in zip((0, 2), named)]
    assert verify(copy, capfd) == (1, [*wrong, '2 of 3 shards are damaged; copy them again'])


def test_shards_that_are_missing_short_or_exchanged_are_named(packed, tmp_path, capfd):
    copy = copy_dataset(packed, tmp_path / 'copy')
    (copy / 'shard-00000.tar').unlink()
    os.truncate(copy / 'shard-00001.tar', 5000)
    shutil.copy(write_dataset(tmp_path / 'other', (7, 5, 8), classes=3, encoding='webp',
                              checksums=open_dataset(copy).manifest.shards[0].checksums is not None) / 'shard-00002.tar', copy)
    status, lines = verify(copy, capfd)
    assert status == 1 and len(lines) == 4
    assert 'shard-00000.tar cannot be opened' in lines[0] and 'shard-00001.tar' in lines[1] and 'has 5000 bytes' in lines[1]
    assert lines[2].startswith('shard-00002.tar: ') and lines[3] == '3 of 3 shards are damaged; copy them again'


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], 'imago pack --verify: error: nowhere is no packed dataset'),
    (['https://a:s3cr@host/x'], "'https://a:***@host/x' is no folder"),
    (['PIPE:touch x {}'], 'no reader')])
def test_what_cannot_be_verified_is_one_line_and_status_2(capfd, arguments, message):
    assert main(['--verify', *arguments]) == 2
    told = capfd.readouterr().err
    assert message in told and told.count('\n') == 1


def test_training_from_old_pictures_says_what_cannot_be_found(packed, tmp_path, capfd):
    dist.init('cpu')
    prepare(tiny_config(packed, tmp_path / 'run', micro_batch=12, data={'path': str(packed), 'lanes': 12}))
    told = capfd.readouterr().err
    old = open_dataset(packed).manifest.shards[0].checksums is None
    assert told.count('note: the pictures of') == told.count('imago pack --verify') == told.count('\n') == old


@pytest.mark.parametrize('arguments', [[], ['a', 'b'], ['a', '--resolution', '64']])
def test_it_takes_a_folder_alone(arguments):
    with pytest.raises(SystemExit, match='2'):
        main(['--verify', *arguments])
