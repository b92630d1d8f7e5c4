"""These tests check what a run shows of itself, also on a full disk."""

import gc
import json
import threading

import numpy as np
import pytest
from runs_for_tests import file_size_limit, write_tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imago.trainer.ranks import dist
from imago.trainer.runs.events import Events
from imago.trainer.runs.stats import Stats
from imago.trainer.tools.train import main


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_events_hold_figures_words_and_pictures(tmp_path):
    events = Events(tmp_path, purge_step=1)
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    events.add({'loss/D': 0.25, 'note': 'few pictures'}, 12)
    events.add_picture('pictures/fakes', picture, 12)
    events.add({'loss/D': 0.5}, 24)
    events.close()
    found = read(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars('loss/D')] == [(12, 0.25), (24, 0.5)]
    image, = found.Images('pictures/fakes')
    assert (image.step, image.height, image.width) == (12, 5, 7)
    assert b'few pictures' in found.Tensors('note/text_summary')[0].tensor_proto.string_val[0]


def test_what_a_run_went_back_behind_is_left_out(tmp_path):
    for start, steps in ((0, (12, 24, 36)), (24, (36, 48))):
        events = Events(tmp_path, purge_step=start + 1)
        for step in steps:
            events.add({'loss/D': float(step + start)}, step)
        events.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert [(event.step, event.value) for event in read(tmp_path).Scalars('loss/D')] == [(12, 12), (24, 24), (36, 60), (48, 72)]


def test_events_fail_where_they_are_added_and_not_once_more(tmp_path, capfd):
    events = Events(tmp_path, purge_step=1)
    with file_size_limit(100):
        with pytest.raises(OSError, match='File too large'):
            events.add({'loss/D': 0.5}, 12)
        events.close()
        del events
        gc.collect()
    assert capfd.readouterr().err == ''


def test_a_full_disk_is_told_in_one_place(tmp_path, capfd):
    """Threads do not report it, nor does a file that fails once more when it is garbage-collected."""
    stats, before = Stats(tmp_path, 1000, 0, True), threading.active_count()
    stats.record({'loss/D': 1.0})
    with file_size_limit(200), pytest.raises(OSError, match='figures cannot be written .*File too large.*make room') as caught:
        stats.report(12)
        stats.report(24)
    assert '\n' not in str(caught.value) and threading.active_count() == before
    with file_size_limit(200):
        for _ in range(3):    # however often it is closed
            try:
                stats.close()
            except OSError as error:
                print(f'one line: {error}')
        del stats, caught
        gc.collect()
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('limit', [3000, 6000])
def test_a_run_on_a_full_disk_ends_with_one_line(shards, tmp_path, capfd, limit):
    path = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml', checkpoint={'interval_kimg': 1000})
    dist.init('cpu')
    with file_size_limit(limit):
        assert main([str(path)]) == 2
    gc.collect()
    told = capfd.readouterr().err
    assert told.startswith('imago train: error: ') and 'File too large' in told and told.count('\n') == 1, told
    assert not list((tmp_path / 'run').rglob('*.tmp'))
    for line in (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()[:-1]:
        json.loads(line)
