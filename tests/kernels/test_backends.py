"""The suites on plain PyTorch, and on the CPU's sources without vector instructions, under sanitizers."""

import subprocess

from emulated import SANITIZERS
from suites import SUITES, run_suites, sanitizers

from imago.kernels.build import plan


def test_suites_pass_on_plain_pytorch():
    run = run_suites(SUITES, mode='reference')
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]


def test_suites_pass_on_sanitized_cpu_sources(tmp_path):
    planned = plan('cpu', sets=['base'])
    for command in planned.objects.values():
        subprocess.run([*(part for part in command if part != '-O3'), '-O1', '-g1', *SANITIZERS], cwd=tmp_path, check=True)
    subprocess.run([*planned.link, *SANITIZERS], cwd=tmp_path, check=True)
    run = run_suites(SUITES[:-1], 'not second_order', library=tmp_path / 'library.so', **sanitizers())
    assert run.returncode == 0 and ' passed' in run.stdout, run.stdout[-3000:]
    assert 'Sanitizer' not in run.stdout and 'runtime error' not in run.stdout, run.stdout[-3000:]
