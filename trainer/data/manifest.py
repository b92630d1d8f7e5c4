"""`dataset.json`: what a folder of shards holds. Written last by `imago pack`, so its presence means complete."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.data.durable import write_text
from trainer.data.reading import parse_json, read_text

FILE_NAME = 'dataset.json'
FORMAT = 'imago-shards/1'


@dataclass(frozen=True)
class Shard:
    """One tar. Its sample k has the key `sample_key(first + k)`; `bytes` and `sha256` are of the whole file."""

    name: str
    first: int
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A packed dataset. `resolution` is (height, width) in pixels, or None where pictures keep their own sizes.

    `class_names` and `class_counts` are empty for a dataset without labels.
    """

    resolution: tuple[int, int] | None
    channels: int
    encoding: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def digest(self) -> str:
        """SHA-256 of the content, the same wherever the dataset lies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({'format': FORMAT, 'num_samples': self.num_samples, **asdict(self)}, indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str, where: str) -> 'Manifest':
        """Read the text of a `dataset.json` found at `where`. ValueError if it is not one, or is of another format."""
        try:
            fields = json.loads(text)
            if fields.pop('format') != FORMAT:
                raise KeyError('format')
            num_samples = fields.pop('num_samples')
            fields['shards'] = tuple(Shard(**shard) for shard in fields['shards'])
            for name in ('class_names', 'class_counts'):
                fields[name] = tuple(fields[name])
            fields['resolution'] = fields['resolution'] and tuple(fields['resolution'])
            manifest = cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{where} is not a {FORMAT} manifest ({type(error).__name__}: {error}); '
                             'make one with: imago pack SOURCE OUT') from error
        first = 0
        for shard in manifest.shards:
            if shard.first != first or shard.samples < 1:
                raise ValueError(f'{where}: shard {shard.name} should start at sample {first} and hold at least one')
            first += shard.samples
        if num_samples != first or first == 0:
            raise ValueError(f'{where}: num_samples is {num_samples}, its shards hold {first}')
        return manifest

    def write(self, folder: Path) -> None:
        """Put `dataset.json` into `folder` in one step."""
        write_text(folder / FILE_NAME, self.to_json())


def find_manifest(folder: Path) -> Manifest | None:
    """That of a packed dataset; None if `folder` has no `dataset.json`, or one of another kind, such as StyleGAN's labels.

    ValueError if it is damaged, of another version, or no text at all.
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
    """The WebDataset key of a sample: its number in the dataset."""
    return f'{index:09d}'
