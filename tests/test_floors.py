"""Imports run strictly downward through the floors of the house."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {'kernels', 'trainer.config', 'trainer.combinations', 'trainer.network_config', 'trainer.schema', 'trainer.sections',
     'trainer.schedule', 'trainer.dist', 'trainer.heartbeat', 'trainer.durable', 'trainer.reading', 'trainer.wording',
     'trainer.machine', 'trainer.resolution', 'trainer.signals', 'trainer.data.locations'},
    {'trainer.models', 'trainer.losses', 'trainer.regularizers', 'trainer.ema', 'trainer.optim', 'trainer.data',
     'trainer.labels', 'trainer.randomness', 'trainer.augment'},
    {'trainer.parallel', 'trainer.zero', 'trainer.state', 'trainer.checkpoint', 'trainer.checkpoint_reader',
     'trainer.export', 'trainer.run_folder', 'trainer.images', 'trainer.stats', 'trainer.history',
     'trainer.metrics', 'trainer.reals', 'trainer.alarms', 'trainer.spikes', 'trainer.diversity'},
    {'trainer.phase'},
    {'trainer.recipe', 'trainer.game'},
    {'trainer.train', 'trainer.watch', 'trainer.guard', 'trainer.evaluation', 'trainer.tools', 'trainer.__main__'},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
FILES = sorted(path.relative_to(ROOT) for part in ('trainer', 'kernels', 'launch') for path in (ROOT / part).rglob('*.py'))


def module_of(name: str) -> str:
    """The entry of FLOOR that a dotted name belongs to; '' for other people's packages."""
    parts = name.split('.')
    return next((head for end in range(len(parts), 0, -1) if (head := '.'.join(parts[:end])) in FLOOR), '')


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} imports relatively'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize('path', FILES, ids=str)
def test_imports_run_downward(path):
    own = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
    ours = {name for name in imports(path) if name.split('.')[0] in ('trainer', 'kernels', 'launch', 'tests')}
    if path.parts[0] == 'launch':
        assert all(name.startswith(('launch', 'trainer.config', 'trainer.machine', 'trainer.data.locations', 'kernels'))
                   for name in ours), ours
    elif path.parts[0] == 'kernels':
        assert all(name.startswith('kernels') for name in ours), ours
    else:
        above = {name for name in ours if FLOOR[module_of(name)] > FLOOR[module_of(own)]}
        assert not above, f'{path} is on floor {FLOOR[module_of(own)]} and imports {above}'


@pytest.mark.parametrize('path', [path for path in FILES if str(path).startswith(('trainer/models', 'trainer/losses',
                                                                                 'trainer/regularizers'))], ids=str)
def test_networks_and_losses_know_nothing_of_ranks(path):
    assert not {name for name in imports(path) if 'dist' in name.split('.') or 'distributed' in name.split('.')}
