"""`imago`: one command, whose sub-commands are processes of their own."""

import argparse
import os
import sys
from importlib import metadata

from launch import local

MODULES = {
    'pack': ('trainer.tools.pack', 'a folder, a zip or tars of pictures -> shards to train from'),
    'train': ('trainer', 'train, or go on training; --gpus N for several processes on this machine'),
    'sample': ('trainer.tools.sample', 'pictures from a run, a checkpoint or an export'),
    'export': ('trainer.tools.export', 'the trained generator as safetensors'),
    'doctor': ('launch.doctor', 'what this machine has, and what it means for a run'),
}


def main() -> int:
    commands = '\n'.join(f'  {name:8}{text}' for name, (_, text) in MODULES.items())
    parser = argparse.ArgumentParser(
        prog='imago', description='Train GANs for high-resolution pictures.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'commands:\n{commands}\n\nimago COMMAND --help says more.')
    parser.add_argument('--version', action='version', version=f'imago {metadata.version("imago-gan")}')
    parser.add_argument('command', choices=MODULES, metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    options = parser.parse_args()
    # a folder named `kernels` where the command is typed must not hide ours
    os.environ.setdefault('PYTHONSAFEPATH', '1')
    if options.command == 'train':
        return local.train(options.arguments)
    module = MODULES[options.command][0]
    os.execv(sys.executable, [sys.executable, '-m', module, *options.arguments])


if __name__ == '__main__':
    sys.exit(main())
