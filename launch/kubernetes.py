"""`imago launch kubernetes` writes a TrainJob, a JobSet or a PyTorchJob, and the configuration beside it."""

import argparse
import posixpath
import re
import sys
from pathlib import PurePosixPath

import yaml

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
from imago.launch.manifest import APIS, CONFIG_FOLDER
from imago.trainer.command import Parser, tell_errors
from imago.trainer.config.load import Config, to_yaml
from imago.trainer.config.schema import check_path
from imago.trainer.data.locations import scheme_of
from imago.trainer.wording import shown

PROG = 'imago launch kubernetes'
OWN_FOLDERS = (CONFIG_FOLDER, '/dev', '/proc', '/sys', '/usr', '/bin', '/lib')   # no volume goes there or above
LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?'
UNITS = {'': 1, 'k': 10 ** 3, 'M': 10 ** 6, 'G': 10 ** 9, 'T': 10 ** 12, 'P': 10 ** 15,
         'Ki': 1 << 10, 'Mi': 1 << 20, 'Gi': 1 << 30, 'Ti': 1 << 40, 'Pi': 1 << 50}


def parser() -> Parser:
    parser = job_parser(PROG, 'Write a manifest: kubectl apply -f FILE starts it.')
    parser.add_argument('--api', choices=APIS, default='trainjob',
                        help='trainjob: Kubeflow Trainer v2 (default); jobset: JobSet; v1: the PyTorchJob that Trainer replaces')
    parser.add_argument('--image', required=True, type=spelled(REFERENCE, 'write it as [REGISTRY/]NAME[:TAG]'),
                        help='with imago in it, as launch/Dockerfile of the repository builds one')
    parser.add_argument('--pvc', action='append', required=True, metavar='NAME:/PATH', type=claim,
                        help='a volume claim that all nodes see, and where; repeatable; relative paths of the configuration '
                        'start from the first')
    parser.add_argument('--namespace', type=spelled(LABEL, 'take small letters, digits and -, as Kubernetes does', 63))
    parser.add_argument('--grace', type=up_to(86_400), default=300, metavar='SECONDS',
                        help='for the last checkpoint, %(default)s')
    parser.add_argument('--shm', default='16Gi', metavar='SIZE', type=quantity, help='shared memory of a node, %(default)s')
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return tell_errors(PROG, lambda: launch(options))


def launch(options: argparse.Namespace) -> int:
    text = manifest(options, load_run(options))
    if options.out is None:
        print(text, end='')
    else:
        write_new(options.out, text)
        print(f'wrote {options.out}')
    return 0


def claim(text: str) -> tuple[str, str]:
    name, _, path = text.partition(':')
    if not path.startswith('/') or len(name) > 253 or not re.fullmatch(rf'{LABEL}(\.{LABEL})*', name):
        raise argparse.ArgumentTypeError(f'{shown(text)} is not of the form NAME:/PATH, with a name of small letters, digits, - '
                                         'and .')
    try:
        check_path(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{shown(text)}: {error}') from error
    if ':' in path or posixpath.normpath(path) != path or any(PurePosixPath(path).is_relative_to(own) or
                                                              PurePosixPath(own).is_relative_to(path) for own in OWN_FOLDERS):
        raise argparse.ArgumentTypeError(f'{shown(text)}: no volume goes there; choose a plain folder of its own, e.g. '
                                         f'{name}:/mnt/{name}')
    return name, path


def quantity(text: str) -> str:
    """Return an amount of memory as Kubernetes writes it: 16Gi, 500M, 1.5e9."""
    match = re.fullmatch(r'([0-9]{1,15}(?:\.[0-9]{1,9})?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|[eE][0-9]{1,2}|)', text)
    if match is not None:
        factor = 10 ** int(match[2][1:]) if match[2][:1] in ('e', 'E') else UNITS[match[2]]
    if match is None or not 1 << 20 <= float(match[1]) * factor <= 1 << 50:
        raise argparse.ArgumentTypeError(f'{shown(text)} is no amount of memory from 1Mi to 1Pi; write e.g. 16Gi')
    return text


def manifest(options: argparse.Namespace, config: Config) -> str:
    """Return the documents as YAML, the configuration first. Raises ValueError for paths that no claim holds."""
    claims = [where for _, where in options.pvc]
    if len(set(claims)) < len(claims):
        raise ValueError(f'--pvc: two claims at {shown(max(claims, key=claims.count))}; give each a folder of its own')
    folders = {key: location for key, location in locations_of(config).items() if not scheme_of(location)}
    for key, path in {'run_dir': config.run_dir, **folders}.items():
        check_on_a_claim(key, path, claims)
    check_masked(config)
    name, namespace = job_name(options, config), {'namespace': options.namespace} if options.namespace else {}
    documents = [
        {'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': {'name': f'{name}-config', **namespace},
         'data': {'config.yaml': to_yaml(config)}},
        *APIS[options.api](options, config, {'name': name, **namespace})]
    header = '# Written by imago launch kubernetes. kubectl apply starts it, kubectl delete ends it for good.\n'
    return header + yaml.dump_all(documents, Dumper=Readable, sort_keys=False, width=120)


def check_on_a_claim(key: str, path: str, claims: list[str]) -> None:
    """Raise ValueError for a local path that a pod would not see. Relative paths start from the first claim."""
    whole = posixpath.normpath(posixpath.join(claims[0], path))
    local = re.match('[A-Za-z][A-Za-z0-9+.-]*:', path) is None
    if local and not any(PurePosixPath(whole).is_relative_to(claim) for claim in claims):
        raise ValueError(f'{key}={shown(path)} lies on no --pvc; mount one at a folder above it, or set {key}')


class Readable(yaml.SafeDumper):
    """This keeps the lines of texts, and writes the pod twice in place of an anchor."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: Readable, text: str) -> yaml.Node:
    return dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|' if '\n' in text else None)


Readable.add_representer(str, _represent_text)

if __name__ == '__main__':
    sys.exit(main())
