"""Imports run strictly downward: from a room to those below it, and inside a room never in a circle."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from imago.launch.cli import MODULES, WHERE

ROOT = Path(__file__).parent.parent
PACKAGES = ('trainer', 'kernels', 'launch', 'configs')
ROOMS = (   # from the bottom up: a package with all that is in it, or a module
    'kernels', 'trainer.wording', 'trainer.command', 'trainer.ranks', 'trainer.data', 'trainer.config', 'trainer.models',
    'trainer.engine', 'trainer.objectives', 'trainer.games', 'trainer.runs', 'trainer.metrics', 'trainer.watch', 'trainer.plan',
    'trainer.start', 'trainer.train', 'trainer.pack', 'trainer.tools', 'trainer.api', 'trainer.__main__', 'launch')
FOR_LAUNCH = (   # what launchers may import; only the doctor's findings need more, torch among it
    'launch', 'kernels', 'trainer.config', 'trainer.command', 'trainer.wording', 'trainer.data.locations',
    'trainer.ranks.machine', 'trainer.ranks.device', 'trainer.runs.checkpoint_names')
FILES = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
         for part in ('trainer', 'kernels', 'launch') for path in sorted((ROOT / part).rglob('*.py'))}


def within(name: str, above: str) -> bool:
    return name == above or name.startswith(above + '.')


def room_of(module: str) -> str:
    """Return the room of a module, or '' for the package that only holds rooms."""
    return next((room for room in ROOMS if within(module, room)), '')


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except those under TYPE_CHECKING, which do not run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == 'TYPE_CHECKING':
            continue
        yield child
        yield from nodes(child)


def imports(module: str) -> set[str]:
    """Return the dotted names that a module imports, inside functions too; Imago's own come without their `imago.`."""
    names = set()
    for node in nodes(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module} imports relatively'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    check_names(module, names)
    return {name.removeprefix('imago.') for name in names}


def check_names(module: str, names: set[str]) -> None:
    bare = {name for name in names if name.split('.')[0] in PACKAGES}
    assert not bare, f'{module} imports {bare} without imago: other distributions have packages of these names'


def imported_modules(module: str) -> set[str]:
    """Return Imago's modules that a module imports, without itself."""
    ours = {name for name in imports(module) if name.split('.')[0] in (*PACKAGES, 'tests')}
    found = {max((other for other in FILES if within(name, other)), key=len, default=name) for name in ours}
    return found - {module}


@pytest.mark.parametrize('module', FILES)
def test_imports_run_downward(module):
    own = room_of(module)
    assert own or module == 'trainer', f'{module} is in no room: give it a place in ROOMS'
    found = imported_modules(module)
    assert own or not found, f'{module} holds rooms and imports {found}'
    rooms = {other: room_of(other) for other in found}
    above = [other for other, room in rooms.items() if room not in ROOMS[:ROOMS.index(own) + 1]]
    assert not above, f'{module} is in {own} and imports {above}, which are above'


@pytest.mark.parametrize('room', ROOMS)
def test_no_circle_inside_a_room(room):
    inside = [module for module in FILES if room_of(module) == room]
    assert inside, f'{room} is not there'
    try:
        TopologicalSorter({module: imported_modules(module) & set(inside) for module in inside}).prepare()
    except CycleError as error:
        pytest.fail(f'{" imports ".join(reversed(error.args[1]))}')


@pytest.mark.parametrize('module', [module for module in FILES if room_of(module) == 'launch'])
def test_launching_needs_little(module):
    assert not [name for name in imported_modules(module) if not any(within(name, allowed) for allowed in FOR_LAUNCH)]


@pytest.mark.parametrize('module', [module for module in FILES if room_of(module) == 'kernels'])
def test_kernels_know_torch_alone(module):
    assert {name.split('.')[0] for name in imports(module)} - sys.stdlib_module_names <= {'torch', 'filelock', 'kernels'}


@pytest.mark.parametrize('module', [module for module in FILES if room_of(module) in ('trainer.models', 'trainer.objectives')])
def test_networks_and_losses_know_nothing_of_ranks(module):
    assert not [name for name in imports(module) if 'dist' in name]


@pytest.mark.parametrize('path', sorted((ROOT / 'tests').rglob('*.py')), ids=lambda path: path.name)
def test_tests_import_what_users_do(path):
    """A bare name would load a module twice, or another distribution's."""
    found = list(nodes(ast.parse(path.read_text())))
    check_names(path.name, {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
                | {node.module for node in found if isinstance(node, ast.ImportFrom)})


def test_commands_start_without_torch():
    """The parsers and the checks of all commands do without what takes longer to import than they may take to answer."""
    names = [name for name, _ in MODULES.values() if name] + list(WHERE.values())
    code = f'import importlib, sys; [importlib.import_module(name) for name in {names}]; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'accelerate', 'webdataset', 'matplotlib', 'scipy', 'cleanfid', 'tensorboard'} & set(loaded)


def test_training_does_without_what_scores_and_plots():
    code = 'import sys, imago.trainer.train; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {'matplotlib', 'cleanfid', 'efficientnet_lite_pytorch', 'torchvision', 'deepspeed', 'onnxruntime'} & set(loaded)


def test_rooms_are_regular_packages():
    """A folder without __init__.py gives way to any other package of its name, and is left out of a wheel."""
    folders = {path.parent for path in [*FILES.values(), ROOT / 'configs' / 'demo.yaml']}
    assert not [folder for folder in folders if not (folder / '__init__.py').is_file()]


def test_test_files_have_names_of_their_own():
    """pytest imports them by their last name, whatever folder they are in."""
    paths = [path for path in (ROOT / 'tests').rglob('*.py') if path.parent.name != 'bench' and path.name != 'conftest.py']
    names = Counter(path.name for path in paths)
    assert not [name for name, count in names.items() if count > 1]
