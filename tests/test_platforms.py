"""Code asks for what only Linux has before it calls it, so that packing, training and sampling work on macOS too."""

import ast
import ctypes
import resource
import sys
from pathlib import Path

import pytest

from imago.trainer.ranks import dist
from imago.trainer.runs import stats

ROOT = Path(__file__).parent.parent
# of os, signal, select, resource, socket and libc; the test suite runs on Linux, where all of them are there
LINUX_ONLY = {
    'sched_getaffinity', 'sched_setaffinity', 'sched_setscheduler', 'O_TMPFILE', 'O_DIRECT', 'O_PATH', 'memfd_create',
    'pidfd_open', 'splice', 'copy_file_range', 'posix_fadvise',
    'posix_fallocate', 'eventfd', 'getrandom', 'setns', 'unshare', 'sigtimedwait',
    'sigwaitinfo', 'prlimit', 'epoll', 'fdatasync', 'getresuid', 'setresuid', 'prctl', 'mallopt', 'malloc_trim', 'cpu_affinity',
    'sendfile', 'listxattr', 'getxattr', 'setxattr'}
DOES_WITHOUT_PROC = {'kernels/build.py'}    # tests/kernels/test_build.py takes it away
FILES = sorted(path.relative_to(ROOT) for part in ('trainer', 'kernels', 'launch') for path in (ROOT / part).rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=str)
def test_what_only_linux_has_is_asked_for(path):
    tree = ast.parse((ROOT / path).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & LINUX_ONLY
    asked = {node.args[1].value for node in ast.walk(tree) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id == 'hasattr' and isinstance(node.args[1], ast.Constant)}
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert used <= asked, f'{path} calls {used - asked}'
    assert str(path) in DOES_WITHOUT_PROC or not any(word.startswith('/proc/') for word in words), f'{path} reads /proc'


def test_ranks_start_without_linux_calls(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: object())
    dist._die_with_parent()
    dist._keep_large_allocations()


def test_peak_memory_is_in_the_units_of_the_system(monkeypatch):
    monkeypatch.setattr(resource, 'getrusage', lambda who: type('Usage', (), {'ru_maxrss': 2_000_000})())
    for platform, expected in (('linux', 2.048), ('darwin', 0.002)):
        monkeypatch.setattr(sys, 'platform', platform)
        assert stats.peak_memory_gb() == pytest.approx(expected)
