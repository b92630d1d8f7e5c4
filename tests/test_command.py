"""How every command reads its arguments and tells an error."""

import subprocess
import sys

import pytest

from imago.trainer.command import CUT_OFF, Parser, tell_errors
from imago.trainer.wording import MOST_TOLD


@pytest.mark.parametrize('arguments, message', [
    (['--seed=--'], 'argument --seed=--: -- is no value'),    # argparse reads [] here
    (['--seed=\udcff'], r'argument --seed=\udcff is no UTF-8 text'),
    (['--seed', 'a\nb'], r"invalid int value: 'a\nb'"),
    (['--seed', '9' * 5000], ' characters)'),
    (['--seed=1', 'x' * 5000], ' characters)'),
    ([], 'the following arguments are required: --seed'),
])
def test_wrong_arguments_are_one_line_and_status_2(capsys, arguments, message):
    parser = Parser(prog='imago test')
    parser.add_argument('--seed', type=int, required=True)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith('imago test: error: ') and message in told
    assert told.count('\n') == 1 and len(told) < MOST_TOLD + 100


def test_numbers_may_begin_with_a_minus():
    parser = Parser(prog='imago test')
    parser.add_argument('--at')
    parser.add_argument('rest', nargs='*')
    for numbers in '-1,2', '-.5,1e-3', '1,-2', '-3':
        assert parser.parse_args(['--at', numbers, 'x']) == parser.parse_args([f'--at={numbers}', 'x'])
        assert parser.parse_args(['--at', numbers]).at == numbers


def test_what_the_user_can_mend_is_one_line_and_other_errors_are_ours(capsys):
    def fail(error):
        raise error
    for error in (ValueError('a\nb\x1b[2J'), OSError(28, 'No space left on device', 'a\nb'), UnicodeError('x' * 10_000)):
        assert tell_errors('imago test', lambda error=error: fail(error)) == 2
        told = capsys.readouterr().err
        assert told.startswith('imago test: error: ') and told.count('\n') == 1 and '\x1b' not in told and len(told) < 2000
    assert tell_errors('imago test', lambda: 3) == 3
    with pytest.raises(KeyError):
        tell_errors('imago test', lambda: fail(KeyError('ours')))


def test_nobody_needs_to_read_on():
    code = ("from imago.trainer.command import tell_errors\nimport sys\n"
            "sys.exit(tell_errors('imago test', lambda: [print(number) for number in range(100_000)] and 0))")
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == '0\n'
        process.stdout.close()
        assert process.stderr.read() == '' and process.wait() == CUT_OFF
