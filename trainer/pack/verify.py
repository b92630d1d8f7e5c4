"""`imago pack --verify` tells whether the shards of a packed dataset are, bit for bit, what was packed."""

import argparse
import hashlib
import sys
from io import BufferedReader
from typing import cast

from tqdm import tqdm

from imago.trainer.command import Parser, tell_error
from imago.trainer.data.locations import scheme_of, shown
from imago.trainer.data.manifest import Shard, sample_key
from imago.trainer.data.shards import Damaged, Dataset, Members, open_dataset, read_contents
from imago.trainer.data.sources import ShardError
from imago.trainer.wording import listed


def verify(source: str) -> int:
    """Print a line for each damaged shard, and one at the end. Returns how many are damaged. ValueError without a dataset."""
    if scheme_of(source):
        raise ValueError(f'{shown(source)} is no folder; shards from elsewhere are verified whenever they are fetched')
    dataset = open_dataset(source)
    shards, damaged = dataset.manifest.shards, 0
    with tqdm(desc='verifying', total=sum(shard.bytes for shard in shards), unit='B', unit_scale=True,
              mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for shard in shards:
            damage = find_damage(dataset, shard)
            if damage:
                damaged += 1
                tqdm.write(damage, file=sys.stdout)
            bar.update(shard.bytes)
    print(f'{damaged} of {len(shards)} shards are damaged; copy them again' if damaged else
          f'all {len(shards)} shards, of {dataset.manifest.num_samples} pictures, are as they were packed')
    return damaged


def find_damage(dataset: Dataset, shard: Shard) -> str | None:
    """Say what is wrong with a shard, in one line that names it, or return None."""
    try:
        with dataset.open(shard) as file:
            same = hashlib.file_digest(cast(BufferedReader, file), 'sha256').hexdigest() == shard.sha256
            lost = [] if shard.checksums is None else _damaged_samples(Members(file, shard), dataset)
    except (ShardError, OSError) as error:
        return str(error) if isinstance(error, ShardError) else f'{shard.name} cannot be read: {error}'
    wrong = [] if same else ['its SHA-256 is not the one in the manifest']
    wrong += [f'damaged samples: {listed(lost)}'] if lost else []
    return f'{shard.name}: {"; ".join(wrong)}' if wrong else None


def _damaged_samples(members: Members, dataset: Dataset) -> list[str]:
    lost = []
    for key in map(sample_key, range(members.shard.first, members.shard.first + members.shard.samples)):
        try:
            read_contents(dataset.manifest, members, key)
        except Damaged:
            lost.append(key)
    return lost


def main(arguments: list[str]) -> int:
    """Run the command. Its exit status is 0 if all is well, 1 if a shard is damaged, 2 for other errors, 130 if interrupted."""
    parser = Parser(prog='imago pack --verify', description=__doc__)
    parser.add_argument('--verify', action='store_true', required=True, help=argparse.SUPPRESS)
    parser.add_argument('source', metavar='FOLDER', help='what imago pack has written')
    options = parser.parse_args(arguments)
    try:
        return 1 if verify(options.source) else 0
    except (ValueError, OSError) as error:
        tell_error(parser.prog, error)
        return 2
    except KeyboardInterrupt:
        print('imago pack: interrupted', file=sys.stderr)
        return 130
