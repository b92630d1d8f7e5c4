"""`imago doctor` tells what this machine has, and what each finding means for a run."""

import sys

from imago.trainer.command import Parser, tell_errors


def parser() -> Parser:
    return Parser(prog='imago doctor', description=f'{__doc__} It compiles the kernels if that is still to do.')


def main(arguments: list[str] | None = None) -> int:
    parser().parse_args(arguments)

    def work() -> int:
        from imago.launch.findings import findings
        for subject, found, meaning in findings():
            print(f'{subject:18} {found:28} {meaning}')
        return 0
    return tell_errors('imago doctor', work)


if __name__ == '__main__':
    sys.exit(main())
