"""What happens to checkpoints when disks, files and folders misbehave."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from runs_for_tests import differing, flat, tiny_config, train_here

from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import SEAL, CheckpointError, find_damage, list_checkpoints
from imago.trainer.start import prepare
from imago.trainer.train import train


@pytest.fixture(scope='module')
def finished(shards, tmp_path_factory):
    """A run of 4 steps with checkpoints at 24 and 48 images, and its state."""
    dist.init('cpu')
    config = tiny_config(shards, tmp_path_factory.mktemp('finished') / 'run')
    return config, train_here(config)


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run in a folder of its own."""
    config, state = finished
    shutil.copytree(config.run_dir, tmp_path / 'run')
    return config.model_copy(update={'run_dir': str(tmp_path / 'run')}), state


def checkpoints_of(config):
    return list_checkpoints(prepare(config).checkpoints.folder)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    'flipped byte': lambda folder: flip_a_byte(next(folder.glob('*.distcp'))),
    'truncated file': lambda folder: next(folder.glob('*.distcp')).write_bytes(b'short'),
    'missing file': lambda folder: next(folder.glob('*.distcp')).unlink(),
    'no seal': lambda folder: (folder / SEAL).unlink(),
    'torn seal': lambda folder: (folder / SEAL).write_text('{"nimg": 48,'),
    'damaged metadata': lambda folder: flip_a_byte(folder / '.metadata'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(copied, capsys, damage):
    config, state = copied
    older, newest = list_checkpoints(prepare(config).checkpoints.folder)
    DAMAGES[damage](newest)
    run = prepare(config)
    assert run.state.nimg == 24
    printed = capsys.readouterr().out
    assert f'{newest} is damaged' in printed and 'resumed from' in printed
    train(run)
    assert not differing(flat(run.state.tree()), state)
    assert find_damage(newest) is None and find_damage(older) is None


def test_a_damaged_checkpoint_is_not_one_of_the_last_k(copied):
    config, _ = copied
    shorter = config.model_copy(update={'total_kimg': 0.036, 'checkpoint': config.checkpoint.model_copy(update={'keep': 1})})
    newest = list_checkpoints(prepare(config).checkpoints.folder)[-1]
    flip_a_byte(next(newest.glob('*.distcp')))
    train(prepare(shorter))
    assert [path.name for path in list_checkpoints(newest.parent)] == ['000000000036']
    assert prepare(config).state.nimg == 36 and newest.with_name('damaged-' + newest.name).is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(copied):
    config, _ = copied
    folder = prepare(config).checkpoints.folder
    for path in list_checkpoints(folder):
        (path / SEAL).unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match='all 2 checkpoints in .* are damaged'):
            prepare(config)


def test_what_a_killed_save_leaves_is_swept_and_never_used(copied):
    config, _ = copied
    folder = prepare(config).checkpoints.folder
    shutil.copytree(folder / '000000000048', folder / '.writing-000000000060')
    assert prepare(config).state.nimg == 48
    assert not list(folder.glob('.writing-*'))


def test_the_last_k_are_kept(shards, tmp_path):
    config = tiny_config(shards, tmp_path / 'run', total_kimg=0.072, checkpoint={'interval_kimg': 0.012, 'keep': 2})
    train_here(config)
    assert [path.name for path in checkpoints_of(config)] == ['000000000060', '000000000072']


def test_saving_copies_the_state_of_the_call(copied, tmp_path):
    config, state = copied
    run = prepare(config)
    run.state.nimg += 12
    run.checkpoints.save(run.state)
    for tensor in flat(run.state.tree()).values():
        tensor.zero_()
    run.checkpoints.wait()
    del run  # and its lock
    again = prepare(config).state
    assert again.nimg == 60
    assert not [name for name in differing(flat(again.tree()), state) if name != 'nimg']


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(copied):
    config, state = copied
    longer = config.model_copy(update={'total_kimg': 0.096})
    run = prepare(longer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writing past it fails as on a full disk
    try:
        with pytest.raises(CheckpointError, match='could not be written: .*File too large.* GB were free.* the last good one is 000000000048'):
            train(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = run.checkpoints.folder
    del run
    assert not list(folder.glob('.writing-*')) and find_damage(folder / '000000000048') is None
    assert not differing(flat(prepare(config).state.tree()), state)


def test_a_disk_too_small_from_the_start_is_refused(copied, monkeypatch):
    config, _ = copied
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(ValueError, match='0.00 GB are free, two checkpoints take .* make room'):
        prepare(config)


@pytest.mark.parametrize('changes, message', [
    ({'seed': 7}, 'seed: 0 there, 7 now'),
    ({'network': {'z_dim': 8}}, 'network.z_dim: 16 there, 8 now'),
    ({'data': {'flip': True}}, 'data.flip: false there, true now'),
])
def test_another_configuration_is_refused_with_its_keys(copied, changes, message):
    config, state = copied
    nested = {key: getattr(config, key).model_copy(update=value) if isinstance(value, dict) else value
              for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        prepare(config.model_copy(update=nested))
    # a checkpoint that was put into a folder without a configuration is checked as well
    (Path(config.run_dir) / 'config.yaml').unlink()
    with pytest.raises(ValueError, match=message):
        prepare(config.model_copy(update=nested))
    assert prepare(config).state.nimg == 48


def test_another_dataset_is_refused(copied, tmp_path):
    from shards_for_tests import write_dataset
    config, _ = copied
    other = write_dataset(tmp_path / 'other', (20, 11), classes=3, size=16)
    with pytest.raises(ValueError, match='another dataset'):
        prepare(config.model_copy(update={'data': config.data.model_copy(update={'path': str(other)})}))


def test_a_run_folder_serves_one_process(copied):
    from imago.trainer.runs.run_folder import RunFolder
    config, _ = copied
    run = prepare(config)
    with pytest.raises(ValueError, match='in use by another process'):
        RunFolder(config, wait_seconds=0)
    assert run.folder


def test_seals_are_json_and_tensors_are_all_there_is(finished):
    config, state = finished
    newest = checkpoints_of(config)[-1]
    seal = json.loads((newest / SEAL).read_text())
    assert (seal['nimg'], seal['step'], seal['world_size']) == (48, 4, 1)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
