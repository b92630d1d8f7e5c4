"""The suites of values and gradients, to be run on other backends than the one at hand."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imago.kernels.build import find_compiler

HERE = Path(__file__).parent
SUITES = ('bias_act', 'filter_paths', 'layer_ends', 'upfirdn2d')


def run_suites(suites: Sequence[str], tests: str = '', mode: str = 'strict', library: Path | None = None,
               **environment: str) -> subprocess.CompletedProcess:
    """Run the tests that -k `tests` chooses of the suites in a new process, on this library, or as `mode` says."""
    files = [str(HERE / f'test_{suite}.py') for suite in suites]
    # --capture=sys: what sanitizers print before they kill the process is not lost
    command = [sys.executable, '-m', 'pytest', '-qx', '-p', 'no:cacheprovider', '--capture=sys', '-k', tests, *files]
    environment = {**os.environ, 'IMAGO_KERNELS': mode, 'IMAGO_KERNELS_LIBRARY': str(library or ''), **environment}
    return subprocess.run(command, env=environment, cwd=HERE.parents[1], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def sanitizers() -> dict[str, str]:
    libraries = [subprocess.check_output([*find_compiler(), f'-print-file-name={name}.so'], text=True).strip()
                 for name in ('libasan', 'libubsan')]
    return {'LD_PRELOAD': ' '.join(libraries), 'ASAN_OPTIONS': 'detect_leaks=0', 'UBSAN_OPTIONS': 'halt_on_error=1'}
