"""`dataset.json` says what a folder of shards holds. `imago pack` writes it last, so its presence means that all is there."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from imago.trainer.data.conditions import MOST_VALUES
from imago.trainer.data.durable import write_text
from imago.trainer.data.reading import parse_json, read_text

FILE_NAME = 'dataset.json'
FORMAT = 'imago-shards/1'
ENCODINGS = ('webp', 'png', 'jpeg', 'jpg')
MOST_SIDE = 1 << 16                           # pixels
MOST_SAMPLES, MOST_IN_A_SHARD = 10**9, 10**7  # a key has nine digits; the order of a shard's samples is kept in memory
LEAST_BYTES = 1024                            # that a sample takes in a tar: a header and a block
SINGLE, TWO_DOMAINS = ('image',), ('a', 'b')   # domains of a sample's pictures
OPTIONAL = ('smallest', 'domains', 'condition_shape')   # fields that are written only where they differ from their defaults
_SHARD_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]{0,254}')   # it becomes part of paths, URLs and command lines
_SHA256 = re.compile('[0-9a-f]{64}')


@dataclass(frozen=True)
class Shard:
    """A shard is one tar. Its sample k has the key `sample_key(first + k)`; `bytes` and `sha256` are those of the whole file.

    `checksums` is the SHA-256 of its member with the checksums (trainer/data/checksums.py), which older shards lack.
    """

    name: str
    first: int
    samples: int
    bytes: int
    sha256: str
    checksums: str | None = None


@dataclass(frozen=True)
class Manifest:
    """This describes a packed dataset. `resolution` is (height, width) in pixels, or None where pictures keep their own sizes.

    `smallest` is then their least height and their least width, which older manifests do not tell.
    Each sample has one picture per domain: `KEY.webp` if `image` is the only domain, else `KEY.a.webp` and `KEY.b.webp`.
    `class_names` and `class_counts` are empty for a dataset without labels.
    """

    resolution: tuple[int, int] | None
    channels: int
    encoding: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]
    smallest: tuple[int, int] | None = None
    domains: tuple[str, ...] = SINGLE
    condition_shape: tuple[int, ...] | None = None   # [d] or [T, d], for the floats that each sample holds

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def digest(self) -> str:
        """Return the SHA-256 of the content, which is the same wherever the dataset lies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        fields = {'format': FORMAT, 'num_samples': self.num_samples, **asdict(self)}
        for name in OPTIONAL:
            if getattr(self, name) == getattr(Manifest, name):   # so a dataset that needs none of them keeps its digest
                del fields[name]
        for shard in fields['shards']:
            if shard['checksums'] is None:   # so older manifests keep their digest
                del shard['checksums']
        return json.dumps(fields, indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str, where: str) -> 'Manifest':
        """Read the text of a `dataset.json` found at `where`. Raises ValueError if it is in another format, or inconsistent."""
        try:
            fields = parse_json(text)
            if fields.pop('format') != FORMAT:
                raise KeyError('format')
            num_samples = fields.pop('num_samples')
            for name in ('class_names', 'class_counts', 'shards'):
                if not isinstance(fields[name], list):
                    raise ValueError(f'{name} is {_short(fields[name])}, no list')
                fields[name] = tuple(fields[name])
            fields['shards'] = tuple(Shard(**shard) for shard in fields['shards'])
            for name in ('resolution', *OPTIONAL):
                if fields.get(name) is not None:
                    fields[name] = tuple(fields[name])
            manifest = cls(**fields)
            manifest._check(num_samples)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
            raise ValueError(f'{where} is not a {FORMAT} manifest ({reason[:300]}); make one with: imago pack SOURCE OUT'
                             ) from error
        return manifest

    def _check(self, num_samples: object) -> None:
        """Raise ValueError for the first field that has a wrong type, is out of bounds, or contradicts another."""
        names, counts = self.class_names, self.class_counts
        for name in ('resolution', 'smallest'):
            size = getattr(self, name)
            if size is not None and not (len(size) == 2 and all(_is_count(side, 1, MOST_SIDE) for side in size)):
                raise ValueError(f'{name} is {_short(size)}, neither null nor [height, width] from 1 to {MOST_SIDE} pixels')
        if not _is_count(self.channels, 1, 3) or self.channels == 2:
            raise ValueError(f'channels is {_short(self.channels)}, neither 3 nor 1')
        if self.encoding not in ENCODINGS:
            raise ValueError(f'encoding is {_short(self.encoding)}, none of {", ".join(ENCODINGS)}')
        if self.domains not in (SINGLE, TWO_DOMAINS):
            raise ValueError(f'domains is {_short(self.domains)}, neither {list(SINGLE)} nor {list(TWO_DOMAINS)}')
        shape = self.condition_shape
        if shape is not None and not (len(shape) in (1, 2) and all(_is_count(side, 1, MOST_VALUES) for side in shape)
                                      and prod(shape) <= MOST_VALUES):
            raise ValueError(f'condition_shape is {_short(shape)}, neither [d] nor [T, d] of 1 to {MOST_VALUES} values')
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f'class_names holds {_short(next(name for name in names if not isinstance(name, str)))}, no text')
        first, seen = 0, set()
        for shard in self.shards:
            _check_shard(shard, first)
            if shard.name in seen:
                raise ValueError(f'{shard.name} is listed twice')
            first += shard.samples
            seen.add(shard.name)
        if not _is_count(num_samples, 1, MOST_SAMPLES) or num_samples != first:
            raise ValueError(f'num_samples is {_short(num_samples)}, its shards hold {first}; 1 to {MOST_SAMPLES} are possible')
        shared_out = all(_is_count(count, 0, first) for count in counts) and sum(counts) == first * bool(names)
        if len(counts) != len(names) or not shared_out:
            raise ValueError(f'class_counts is {_short(counts)}, which does not share out {first} samples among {len(names)} '
                             'classes')

    def write(self, folder: Path) -> None:
        """Put `dataset.json` into `folder` in one step."""
        write_text(folder / FILE_NAME, self.to_json())


def find_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest; None if it has no `dataset.json`, or one of another kind, such as StyleGAN's labels.

    Raises ValueError if it is damaged, of another version, or no text at all.
    """
    path = folder / FILE_NAME
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}); mend it or move it away') from error
    ours = isinstance(fields, dict) and str(fields.get('format')).startswith(FORMAT.partition('/')[0])
    return Manifest.from_json(text, str(path)) if ours else None


def sample_key(index: int) -> str:
    """Return the WebDataset key of a sample, which is its number in the dataset."""
    return f'{index:09d}'


def _check_shard(shard: Shard, first: int) -> None:
    """Raise ValueError for the first field that is impossible. `first` is the number of samples in the shards before it."""
    if not isinstance(shard.name, str) or not _SHARD_NAME.fullmatch(shard.name):
        raise ValueError(f'{_short(shard.name)} is no name of a shard: letters, digits and . _ - are, not beginning with . or -')
    if not _is_count(shard.samples, 1, MOST_IN_A_SHARD) or not _is_count(shard.bytes, shard.samples * LEAST_BYTES, 1 << 53):
        raise ValueError(f'{shard.name} has {_short(shard.samples)} samples in {_short(shard.bytes)} bytes; from 1 to '
                         f'{MOST_IN_A_SHARD} are possible, of {LEAST_BYTES} bytes or more each')
    if not _is_count(shard.first, first, first):
        raise ValueError(f'{shard.name} starts at sample {_short(shard.first)}, not at {first}')
    for digest in (shard.sha256, *(() if shard.checksums is None else (shard.checksums,))):
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ValueError(f'{shard.name} has {_short(digest)} for a SHA-256, which has 64 small hexadecimal digits')


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most   # True is no number


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + ' ...'
