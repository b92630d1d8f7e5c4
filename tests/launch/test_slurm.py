"""The script that imago launch slurm writes, run here by commands that stand in for Slurm's."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import slurm_for_tests
from runs_for_tests import file_size_limit, read_checkpoint, tiny_tree, write_tiny

from imago.launch.slurm import main
from imago.trainer.runs.checkpoint import list_checkpoints

TIMEOUT = 120


@pytest.fixture
def job(tmp_path):
    """The environment of a Slurm job of two nodes."""
    return slurm_for_tests.install(tmp_path / 'bin')


def slurm_log(job):
    with open(job[slurm_for_tests.LOG]) as file:
        return file.read().splitlines()


def start(script, job):
    return subprocess.Popen(['bash', str(script)], env=job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition, process):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, 'hangs'
        time.sleep(0.005)


def steps_seen(run_dir, rank):
    """Return the nimg of each step, in the order of the rank's record."""
    path = run_dir / f'keys-rank{rank}.jsonl'
    return [json.loads(line)['nimg'] for line in path.read_text().splitlines()] if path.exists() else []


def write_script(tmp_path, *arguments):
    script = tmp_path / 'job.sbatch'
    assert main([*map(str, arguments), '--nodes', '2', '--gpus-per-node', '1', '-o', str(script)]) == 0
    return script


def test_a_job_stops_before_its_time_is_up_requeues_itself_and_finishes(shards, tmp_path, monkeypatch, job):
    run_dir, total = tmp_path / 'a run', 180
    tree = tiny_tree(shards, run_dir)
    config = write_tiny(shards, run_dir, tmp_path / 'c.yaml', checkpoint={'interval_kimg': 1000},
                        data=tree['data'] | {'workers': 1}, log=tree['log'] | {'interval_kimg': 1000, 'grid_kimg': 1000})
    monkeypatch.setenv('PATH', job['PATH'])
    monkeypatch.setenv(slurm_for_tests.LOG, job[slurm_for_tests.LOG])
    script = write_script(tmp_path, config, f'total_kimg={total / 1000}', '--submit', '--time', '10', '--partition', 'gpu')
    assert slurm_log(job) == [f'submitted {script}']

    first = start(script, job)
    wait_until(lambda: min(len(steps_seen(run_dir, rank)) for rank in (0, 1)) >= 2, first)
    first.send_signal(signal.SIGUSR1)   # as --signal=B:USR1 does: to the batch shell alone
    output, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 143 and 'stopped at' in output and 'Traceback' not in output, output
    assert slurm_log(job)[1:] == ['forwarded SIGUSR1', 'statuses 143 143', f'requeue {job["SLURM_JOB_ID"]}']
    stopped, = list_checkpoints(run_dir / 'checkpoints')
    assert int(stopped.name) < total

    second = start(script, job | {'SLURM_RESTART_COUNT': '1'})
    output, _ = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 0 and f'resumed from {stopped}' in output and 'finished at 0.18 kimg' in output, output
    assert slurm_log(job)[4:] == ['statuses 0 0']
    assert read_checkpoint(list_checkpoints(run_dir / 'checkpoints')[-1])['nimg'] == total
    for rank in (0, 1):
        assert steps_seen(run_dir, rank) == list(range(0, total, 12))


@pytest.mark.parametrize('status, requeued', [(0, False), (1, False), (2, False), (138, True), (143, True)])
def test_only_a_job_that_was_stopped_is_requeued(shards, tmp_path, job, status, requeued):
    script = write_script(tmp_path, write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    (tmp_path / 'bin' / 'srun').write_text(f'#!/bin/sh\nexit {status}\n')
    assert start(script, job).wait(TIMEOUT) == status
    assert (tmp_path / 'bin' / 'log').exists() == requeued


def test_a_cancelled_job_stays_cancelled(shards, tmp_path, job):
    script = write_script(tmp_path, write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    started = tmp_path / 'started'
    (tmp_path / 'bin' / 'srun').write_text(
        f'#!/bin/bash\ntrap "exit 143" TERM\ntouch {started}\nwhile true; do read -rt 1 <> <(:); done\n')
    process = start(script, job)
    wait_until(started.exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 143
    assert not (tmp_path / 'bin' / 'log').exists()


def test_the_script_is_bash_and_quotes_what_it_is_given(shards, tmp_path, capsys):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'it\'s $(touch harm).yaml')
    assert main([str(config), "data.path=a b; touch 'harm'", '--nodes', '2', '--gpus-per-node', '2',
                 '--container', './i m.sqsh', '--mount', '/a b/../c']) == 0
    script = capsys.readouterr().out
    for line in ('#SBATCH --job-name=imago-run', '#SBATCH --nodes=2', '#SBATCH --ntasks-per-node=1',
                 '#SBATCH --signal=B:USR1@180', '#SBATCH --requeue'):
        assert line in script.splitlines()
    assert '--gpus-per-node=2\n' not in script.split('cd ')[0]    # device=cpu asks for none
    assert subprocess.run(['bash', '-n'], input=script, text=True, capture_output=True).stderr == ''
    command = script[script.index('srun '):script.index(' &\n')].replace('srun', 'printf %s\\\\n', 1)
    words = subprocess.run(['bash', '-c', command], text=True, capture_output=True, cwd=tmp_path).stdout.splitlines()
    assert {str(config), "data.path=a b; touch 'harm'", '--container-image=i m.sqsh',
            f'--container-mounts={Path.cwd()}:{Path.cwd()},/c:/c'} <= set(words)
    assert not (tmp_path / 'harm').exists()


def test_other_options_of_sbatch_stand_in_the_script_quoted(shards, tmp_path, capsys):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    given = {'qos': 'high', 'gres': 'gpu:a100:2,nvme:1', 'constraint': '[rack1*2&(a|b)]', 'comment': 'a b; touch harm',
             'mem': '0', 'account': 'lab', 'output': 'logs/%x.log'}
    options = [option for item in given.items() for option in ('--sbatch', '='.join(item))]
    assert main([str(config), '--nodes', '2', '--gpus-per-node', '2', 'device=auto', *options, '--sbatch', 'exclusive']) == 0
    lines = [line.removeprefix('#SBATCH ') for line in capsys.readouterr().out.splitlines() if line.startswith('#SBATCH ')]
    words = [shlex.split(line) for line in lines]    # sbatch reads a line so, with a # that is not quoted for a comment
    assert all(len(word) == 1 for word in words)
    found = dict(word.removeprefix('--').partition('=')[::2] for word, in words)
    assert given.items() <= found.items() and found['exclusive'] == '' and len(found) == len(lines)
    assert 'gpus-per-node' not in found and found['nodes'] == '2'    # gres asks for them


@pytest.mark.parametrize('arguments', [
    ['--partition', 'gpu,big-2.a+b', '--account', 'lab@v100'], ['--time', '2-12'], ['--time', '90:00:00'],
    *(['--container', image] for image in ('ubuntu', 'registry.org:5000/lab/imago:1.2', 'nvcr.io#nvidia/pytorch:24.01-py3',
                                           'docker://me@registry#lab/imago:1', '/images/imago.sqsh', 'a/b@sha256:' + 'f' * 64)),
])
def test_what_slurm_and_pyxis_take_is_taken(shards, tmp_path, capsys, arguments):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    assert main([str(config), '--nodes', '2', '--gpus-per-node', '1', *arguments]) == 0
    assert arguments[-1] in capsys.readouterr().out


def test_a_script_that_does_not_fit_on_the_disk_is_not_left(shards, tmp_path, capsys):
    config = write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml')
    with file_size_limit(100):
        assert main([str(config), '--nodes', '2', '--gpus-per-node', '1', '-o', str(tmp_path / 'job')]) == 2
    assert 'File too large' in capsys.readouterr().err and not (tmp_path / 'job').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--nodes', '0'], 'argument --nodes: 0 is no whole number from 1 to 10000'),
    (['--nodes', 'many'], 'argument --nodes: many is no whole number'),
    (['--nodes', '100000000'], 'argument --nodes: 100000000 is no whole number'),
    (['--nodes', '\u0663'], 'is no whole number'),    # a digit, but none that Slurm reads
    (['--gpus-per-node', '1_0'], 'argument --gpus-per-node: 1_0 is no whole number'),
    (['--cpus-per-gpu', '0'], 'argument --cpus-per-gpu: 0 is no whole number'),
    (['--notice', '65536'], 'argument --notice: 65536 is no whole number from 1 to 65535'),
    (['--account', ''], "argument --account: '': take letters"),
    (['--account', 'a b'], 'argument --account: a b: take letters'),
    (['--partition', ''], "argument --partition: '': take letters"),
    (['--partition', 'gpu,'], 'argument --partition: gpu,: take letters'),
    (['--partition=-x'], 'argument --partition: -x: take letters'),
    (['--container', ''], "argument --container: '': write an image as"),
    (['--container', 'lab#i m:1'], 'argument --container: lab#i m:1: write an image as'),
    (['--container', 'a\nb'], r'argument --container: a\nb: write an image as'),
    (['--container', '/a\nb'], 'it has control characters'),
    (['--container', 'x', '--mount', ''], "argument --mount: '': it is empty"),
    (['--container', 'x', '--mount', '/a:/etc,/b'], 'argument --mount: /a:/etc,/b: give one folder'),
    (['--container', 'x', '--mount=~/x'], 'write the whole path'),
    (['--venv', ''], "argument --venv: '': it is empty"),
    (['--time', ''], "--time '': write it as 24:00:00"),
    (['--time', '\u0662:00:00'], 'write it as 24:00:00'),
    (['--time', '367-0'], '--time 367-0 is 367 days, of 366'),
    (['--time', '9' * 5000], 'write it as 24:00:00'),
    (['--name', ''], "--name '': take at most"),
    (['--sbatch', 'q=high'], 'argument --sbatch: q=high: write it as KEY=VALUE'),
    (['--sbatch', '--qos=high'], 'argument --sbatch: expected one argument'),
    (['--sbatch=--qos=high'], 'argument --sbatch: --qos=high: write it as KEY=VALUE'),
    (['--sbatch', ''], "argument --sbatch: '': write it as KEY=VALUE"),
    (['--sbatch', 'qos='], 'argument --sbatch: qos=: qos takes letters'),
    (['--sbatch', 'comment=a"b'], 'comment takes letters, digits, spaces'),
    (['--sbatch', 'comment=a#b'], 'comment takes letters, digits, spaces'),
    (['--sbatch', 'comment=a\n#SBATCH --exclusive'], 'comment takes letters, digits, spaces'),
    (['--sbatch', 'nodes=3'], 'argument --sbatch: nodes=3: the script says nodes itself; use --nodes'),
    (['--sbatch', 'tim=10'], 'argument --sbatch: tim=10: the script says time itself; use --time'),
    (['--sbatch', 'container-image=x'], 'the script says container-image itself; use --container'),
    (['--sbatch', 'no-requeue'], 'end the job by scancel'),
    (['--sbatch', 'qos=a', '--sbatch', 'qos=b'], '--sbatch qos=b: qos is given twice; give it once'),
    (['--account', 'a', '--sbatch', 'account=b'], '--sbatch account=b: account is given twice; give it once'),
    (['--sbatch', 'gres=nvme:1,gpu:a100:4'], 'gres=nvme:1,gpu:a100:4 is 4 GPUs a node, and --gpus-per-node 1; give the same'),
    (['-o', 'nowhere/x.sbatch'], 'No such file'),
    (['--nodes', '5'], 'data.lanes=12 is not a multiple of the 5 ranks'),
    (['bacth=24'], 'unknown key bacth; did you mean batch?'),
    (['--time', 'noon'], "--time noon: write it as 24:00:00"),
    (['--time', '2:30'], '--time 2:30 is 150 s, no longer than --notice 180'),
    (['--partition', 'a\n#SBATCH --exclusive'], '--partition'),
    (['--name', 'Big_Run'], "--name Big_Run: take at most 45 small letters"),
    (['--venv', 'nowhere'], '--venv nowhere has no bin/python'),
    (['--mount', '/data'], '--mount is for --container'),
    (['--venv', '.', '--container', 'image'], 'not allowed with argument'),
    (['-o', 'CONFIG'], 'is there already'),
    (['--submit'], '--submit: there is no sbatch on this machine'),
])
def test_bad_input_is_one_line_and_status_2(shards, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv('PATH', str(tmp_path))
    path = str(write_tiny(shards, tmp_path / 'run', tmp_path / 'c.yaml'))
    arguments = [argument.replace('CONFIG', path) for argument in arguments]
    try:
        status = main([path, '--nodes', '2', '--gpus-per-node', '1', *arguments])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and message in told and told.startswith('imago launch slurm: error: ') and told.count('\n') == 1
