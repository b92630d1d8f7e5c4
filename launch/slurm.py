"""`imago launch slurm` writes an sbatch script that trains, stops before its time is up, and queues itself again."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from imago.launch.cluster import (
    REFERENCE,
    check_masked,
    job_name,
    job_parser,
    load_run,
    locations_of,
    spelled,
    up_to,
    write_new,
)
from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config
from imago.trainer.config.schema import check_path
from imago.trainer.data.locations import masked
from imago.trainer.wording import shown

PROG = 'imago launch slurm'
TIME = re.compile('(?:(?P<days>[0-9]{1,6})-)?(?P<fields>[0-9]{1,9}(?::[0-9]{1,9}){0,2})')
LONGEST = 366 * 86400     # seconds that one start may take
NAMES = spelled(r'[A-Za-z0-9_][\w.@+-]*(,[A-Za-z0-9_][\w.@+-]*)*',
                'take letters, digits and . @ + - _, and a comma between names')
INSTEAD = {   # the script itself needs these directives as they are; what to do instead
    'job-name': 'use --name', 'nodes': 'use --nodes', 'time': 'use --time', 'signal': 'use --notice',
    'ntasks': 'use --nodes', 'ntasks-per-node': 'use --gpus-per-node', 'cpus-per-task': 'use --cpus-per-gpu',
    'cpus-per-gpu': 'use --cpus-per-gpu', 'gpus': 'use --gpus-per-node', 'gpus-per-node': 'use --gpus-per-node',
    'gpus-per-task': 'use --gpus-per-node', 'container-image': 'use --container', 'container-mounts': 'use --mount',
    'chdir': 'start imago launch slurm where the job is to start', 'array': 'one run is one job', 'wrap': 'the script is the job',
    'requeue': 'the job queues itself again until the run is finished', 'no-requeue': 'end the job by scancel, once it is done'}
PLAIN = r'[\w.,:@%+/=-]+'
QUOTED = r'[\w.,:@%+/=&|*()\[\]{}<>!?~^; -]+'   # nothing in it ends a quotation or a line, or begins a comment

SCRIPT = '''\
#!/bin/bash
# Written by imago launch slurm. Submit it with sbatch; scancel ends it for good.
{directives}

cd {folder} || exit 2
export PYTHONSAFEPATH=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# One task a node; each is torchrun, which meets the others at the first node.
srun {srun} \\
    {python} -m imago.launch.node {run} \\
    --rendezvous "$head:$port" --id "$SLURM_JOB_ID" &
srun=$!

# USR1 comes to this shell when the time is nearly up: the ranks checkpoint and stop. TERM is scancel's, or a preemption's,
# after which Slurm itself queues the job again.
cancelled=no
trap 'kill -USR1 "$srun"' USR1
trap 'cancelled=yes; kill -TERM "$srun"' TERM
# a signal ends wait before srun has ended
while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done
wait "$srun"
status=$?

# 143, or 138 from a node that had hardly begun: stopped, and to go on. 0: finished. Others: failed.
if [ "$cancelled" = no ] && {{ [ "$status" -eq 143 ] || [ "$status" -eq 138 ]; }}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
'''


def parser() -> Parser:
    parser = job_parser(PROG, 'Write an sbatch script that trains over several nodes, and requeues itself until it is done.')
    parser.add_argument('--time', help="of one start, as Slurm writes it: 24:00:00, 2-12; else the partition's")
    parser.add_argument('--partition', type=NAMES)
    parser.add_argument('--account', type=NAMES)
    parser.add_argument('--sbatch', action='append', default=[], metavar='KEY=VALUE', type=directive_of,
                        help='any other option of sbatch, such as qos=high, gres=gpu:a100:8 or constraint=nvlink; KEY alone for '
                        'one without a value; repeatable')
    parser.add_argument('--notice', type=up_to(65535), default=180, metavar='SECONDS',
                        help='for the last checkpoint, %(default)s')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--venv', type=a_path, help='with imago in it, seen by all nodes; else the one that runs this')
    where.add_argument('--container', type=container, metavar='IMAGE', help='with imago in it, as launch/Dockerfile '
                       'of the repository builds one; for Slurm with pyxis')
    parser.add_argument('--mount', action='append', default=[], metavar='PATH', type=mounted,
                        help='also seen in the container; repeatable')
    parser.add_argument('--submit', action='store_true', help='and give it to sbatch')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return tell_errors(PROG, lambda: launch(options))


def a_path(text: str) -> Path:
    try:
        return Path(check_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{shown(text)}: {error}') from error


def container(text: str) -> str:
    """Return a file's path, or what pyxis takes for an image: [docker://][USER@][REGISTRY#]IMAGE[:TAG]."""
    if text.startswith(('/', './', '../')):
        return str(a_path(text))
    return spelled(rf'(dockerd?://|podman://)?([\w.-]+@)?([\w.:-]+#)?{REFERENCE}',
                   'write an image as [REGISTRY#]NAME[:TAG], or the path of a file, with a / in front')(text)


def mounted(text: str) -> str:
    """Return an absolute path, at which a container sees it too."""
    if ':' in text or ',' in text:    # these divide mounts, and the two sides of one
        raise argparse.ArgumentTypeError(f'{shown(text)}: give one folder without : or , in its name, seen at the same place')
    return os.path.abspath(a_path(text))


def directive_of(text: str) -> tuple[str, str | bool]:
    """Turn 'qos=high' into ('qos', 'high'), and 'exclusive' into ('exclusive', True)."""
    key, equals, value = text.partition('=')
    if not re.fullmatch('[a-z][a-z0-9]+(-[a-z0-9]+)*', key) or len(text) > 1000:
        raise argparse.ArgumentTypeError(f'{shown(text)}: write it as KEY=VALUE, with the long name of an option of sbatch, e.g. '
                                         'qos=high')
    if known := next((known for known in INSTEAD if known.startswith(key)), None):   # sbatch takes beginnings too
        raise argparse.ArgumentTypeError(f'{shown(text)}: the script says {known} itself; {INSTEAD[known]}')
    if equals and not re.fullmatch(QUOTED, value, re.ASCII):
        raise argparse.ArgumentTypeError(f'{shown(text)}: {key} takes letters, digits, spaces and . , : ; @ % + / = & | * ( ) [ '
                                         '] { } < > ! ? ~ ^ - _ only')
    return key, value if equals else True


def launch(options: argparse.Namespace) -> int:
    config = load_run(options)
    script = batch_script(options, config)
    if options.submit and shutil.which('sbatch') is None:
        raise ValueError('--submit: there is no sbatch on this machine; write the script with -o FILE, for one that has it')
    path = options.out or (Path(f'{job_name(options, config)}.sbatch') if options.submit else None)
    if path is None:
        print(script, end='')
    else:
        write_new(path, script)
        print(f'wrote {path}')
    return subprocess.run(['sbatch', str(path)]).returncode if options.submit else 0


def batch_script(options: argparse.Namespace, config: Config) -> str:
    """Return the script. Raises ValueError for what Slurm, or a reader, would misunderstand."""
    if options.mount and not options.container:
        raise ValueError('--mount is for --container IMAGE; without one the nodes see what they see')
    check_time(options)
    name, gpus, cpus = job_name(options, config), options.gpus_per_node, options.cpus_per_gpu * options.gpus_per_node
    directives = {
        'job-name': name, 'nodes': options.nodes, 'ntasks-per-node': 1, 'cpus-per-task': cpus,
        'gpus-per-node': None if config.device == 'cpu' else gpus,
        'time': options.time, 'partition': options.partition, 'account': options.account,
        'signal': f'B:USR1@{options.notice}', 'requeue': True, 'output': f'{name}-%j.log', 'open-mode': 'append'}
    directives |= others(options)
    folder = Path.cwd()
    # srun does not inherit the number of CPUs, and a node that has stopped must not end one that is still saving
    srun = [f'--cpus-per-task={cpus}', '--kill-on-bad-exit=0']
    if options.container:
        if re.search('[,:]', str(folder)):
            raise ValueError(f'--container cannot see this folder, {shown(folder)}, whose name holds : or , ; '
                             'start from another one')
        mounts = list(dict.fromkeys([str(folder), *options.mount]))
        srun += [f'--container-image={options.container}', f'--container-workdir={folder}',
                 f'--container-mounts={",".join(f"{mount}:{mount}" for mount in mounts)}']
    run = [options.config, *masked_overrides(options.overrides, config), f'--nodes={options.nodes}', f'--gpus-per-node={gpus}']
    return SCRIPT.format(directives='\n'.join(directive(*item) for item in directives.items() if item[1] is not None),
                         folder=shlex.quote(str(folder)), srun=shlex.join(srun), python=shlex.quote(find_python(options)),
                         run=shlex.join(run))


def masked_overrides(overrides: list[str], config: Config) -> list[str]:
    """Return the overrides as they may stand in a script. Raises ValueError where the job could not do without what is masked."""
    hidden = [masked(text) for text in overrides]
    if hidden == overrides or all(masked(location) == location for location in locations_of(config).values()):
        return overrides
    check_masked(config)
    return hidden


def others(options: argparse.Namespace) -> dict[str, str | bool | None]:
    """Return the directives that --sbatch gives. Raises ValueError where one repeats or contradicts what is said already."""
    found = dict(options.sbatch)
    given = [key for key, _ in options.sbatch] + [key for key in ('partition', 'account') if getattr(options, key)]
    if twice := next((key for key in found if given.count(key) > 1), None):
        raise ValueError(f'--sbatch {twice}={shown(found[twice])}: {twice} is given twice; give it once')
    gpus = [part for part in str(found.get('gres', '')).split(',') if re.match('(gres/)?gpu(:|$)', part)]
    counts = [int(part.rpartition(':')[2]) if re.search(':[0-9]{1,9}$', part) else 1 for part in gpus]
    if gpus and sum(counts) != options.gpus_per_node:
        raise ValueError(f'--sbatch gres={found["gres"]} is {sum(counts)} GPUs a node, and --gpus-per-node '
                         f'{options.gpus_per_node}; give the same number')
    return found | ({'gpus-per-node': None} if gpus else {})   # clusters know one way or the other to ask for GPUs


def directive(key: str, value: object) -> str:
    """Return a line for sbatch, which reads quotation marks as a shell does, and nothing else as a shell does."""
    if value is True:
        return f'#SBATCH --{key}'
    return f'#SBATCH --{key}={value}' if re.fullmatch(PLAIN, str(value), re.ASCII) else f'#SBATCH --{key}="{value}"'


def check_time(options: argparse.Namespace) -> None:
    """Raise ValueError unless --time is Slurm's minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S, and longer than the notice."""
    if options.time is None:
        return
    match = TIME.fullmatch(options.time)
    if match is None:
        raise ValueError(f'--time {shown(options.time)}: write it as 24:00:00 or 2-12:00:00')
    fields = [int(field) for field in match['fields'].split(':')]
    units = (3600, 60, 1) if match['days'] or len(fields) == 3 else (60, 1)
    seconds = 86400 * int(match['days'] or 0) + sum(field * unit for field, unit in zip(fields, units))
    if seconds > LONGEST:
        raise ValueError(f'--time {options.time} is {seconds // 86400} days, of {LONGEST // 86400} that one start may take; the '
                         'job goes on by itself in the next one')
    if seconds <= options.notice:
        raise ValueError(f'--time {options.time} is {seconds} s, no longer than --notice {options.notice}; '
                         'take a longer --time or a shorter --notice')


def find_python(options: argparse.Namespace) -> str:
    if options.container:
        return 'python'
    python = options.venv.absolute() / 'bin' / 'python' if options.venv else Path(sys.executable)
    if not python.exists():
        raise ValueError(f'--venv {options.venv} has no bin/python; give the folder of a virtual environment')
    return str(python)


if __name__ == '__main__':
    sys.exit(main())
