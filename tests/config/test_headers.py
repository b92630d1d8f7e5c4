"""Every command in the head of a configuration works after pip install: it names configurations, no files of the repository."""

import re
import shlex

import pytest

from imago.trainer.config.load import load_config
from imago.trainer.config.shipped import CONFIGS
from imago.trainer.tools import sample

COMMAND = re.compile(r'imago (train|sample) (.*?)(?=\s{2}|[;()]|$)')


def commands_of(name: str) -> list[tuple[str, list[str]]]:
    lines = [line for line in (CONFIGS / f'{name}.yaml').read_text().splitlines() if line.startswith('#')]
    return [(command, shlex.split(arguments)) for line in lines for command, arguments in COMMAND.findall(line)]


@pytest.mark.parametrize('name', sorted(path.stem for path in CONFIGS.glob('*.yaml')))
def test_commands_in_the_head_are_accepted(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = commands_of(name)
    assert commands[0][0] == 'train' and commands[0][1][0] == name, 'the first line shows how to train it'
    for command, arguments in commands:
        if command == 'sample':
            assert sample.main(arguments) == 2 and ': RUN' in capsys.readouterr().err, 'only the run is not there'
            continue
        world = 1
        if '--gpus' in arguments:
            place = arguments.index('--gpus')
            world = int(arguments[place + 1])
            del arguments[place:place + 2]
        assert arguments[0] in {path.stem for path in CONFIGS.glob('*.yaml')}
        load_config(arguments[0], arguments[1:]).check_world(world)


def test_heads_name_no_files_of_the_repository():
    assert not [path.stem for path in CONFIGS.glob('*.yaml') if re.search(r'(?m)^#.*(configs/|\.yaml)', path.read_text())]
