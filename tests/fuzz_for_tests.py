"""Odd words, drawn arguments, and damaged files; all from a seed."""

import json
import os
import random
import re
import stat
from pathlib import Path

from trainer.config import Config, _known_keys

WORDS = [
    '', ' ', 'x', 'X y', 'a\nb', 'a\rb\x1b[2J', '\udcff', 'x' * 5000, 'x' * 300, '~', '~/x', '../x', './x', '*', '@', '--', '-h?',
    '-1', '0', '1', '3', '7', '12', '16', '16x16', '24', '99999', '0.5', '1e-9', '-0', '1e3', '1e400', 'nan', 'inf', '-inf',
    '9' * 40, '9' * 5000, '1_0', '\u0663', '0x10', '1:30', '2024-01-01', 'null', 'true', 'off', 'no', '0-3', '0-999999999',
    '1,2,3', '[]', '{}', '[1, 2]', '[' * 3000, '{a: ' * 500, '!!python/object/apply:os.mkdir [harm]', '!!timestamp x', '!!bool x',
    '&a [*a, *a]', '"\\UFFFFFFFF"', '"a\\nb"', '{start: 1, end: 0, kimg: 1}', '{8: 4}', 'a=b', '=', '#x', '- x', 'a: b: c',
    '%s%n{}', '$(touch harm)', '`touch harm`', "'; touch harm; '", '"', "'", '\\', '\u202e', '\u2028', 'UTF\u00fc\U0001f600',
    'c.yaml', 'run', 'shards', 'export', 'pipe', 'nowhere/x', '/dev/null', '/dev/zero', '/proc/self/mem', 'PIPE:touch harm {}',
    ' pipe:touch harm', 'scp://x/y', 'x{0..999999999}.tar', 'a:/etc,/b', 'cpu', 'fid', 'kid', 'hinge', 'wgan', 'fsdp', 'zero',
    'dcgan', 'biggan', 'pggan', 'r3gan', 'began', 'ada']
VALUES = [   # of JSON
    'null', 'true', '[]', '{}', '""', '"x"', '-1', '0', '1', '1e400', '-1e400', 'NaN', '9' * 30, '9' * 5000, '0.5', '1e15', '[1]',
    '"' + 'x' * 3000 + '"', '[' * 5000 + ']' * 5000, '{"a":' * 3000 + '1' + '}' * 3000, '"../x"', '"/etc/passwd"', '"a\\nb"',
    '{"a": 1}', '"\\ud800"']
OVERRIDES = [   # that go together more often than not
    'batch=24', 'micro_batch=6', 'data.lanes=6', 'data.resolution=8', 'data.conditional=true', 'data.flip=true', 'data.workers=0',
    'data.path=nowhere', 'seed=1', 'device=cpu', 'compile=true', 'run_dir=run', 'network.mbstd_group=2', 'network.w_dim=8',
    'network.low_precision=bf16', 'network.low_precision_blocks=2', 'network.channel_base=64', 'network=null',
    'network={name: dcgan}', 'network={name: pggan}', 'network={name: began}', 'network={name: r3gan, group_size: 4}',
    'network={name: sngan, channels: 8}', 'growth={start_resolution: 8}', 'augment.name=ada', 'augment.name=diffaugment',
    'augment.groups=[blit,geometry,color,filter,noise,cutout]', 'augment.p=0.5', 'guard.action=warn', 'guard.action=off',
    'guard.data=shards', 'loss.name=hinge', 'loss.name=relativistic', 'loss.name=began', 'loss.name=wgan', 'loss.auxiliary=1',
    'loss.d_steps=2', 'log.grid=[1, 1]', 'log.singular_values=true', 'regularizers.normalise=spectral', 'regularizers.r1=0',
    'regularizers.normalise=stable_rank', 'regularizers.normalise_g=true', 'regularizers.path_length=0', 'regularizers.lecam=0.1',
    'regularizers.orthogonal=1e-4', 'parallel.strategy=fsdp', 'parallel.strategy=zero', 'evaluate.interval_kimg=0.012',
    'evaluate.metrics=[kid, intra_fid]', 'checkpoint.best=kid', 'optim.g_lr={start: 1e-3, end: 0, kimg: 1}',
    'optim.betas=[0, 0.9]']
KEYS = _known_keys(Config)
KINDS = ('flip', 'cut', 'grow', 'empty', 'junk', 'folder', 'pipe', 'zero', 'gone', *['value'] * 4)


class Draws(random.Random):
    """Odd words with the chance `odd`; else good ones, which lead further."""

    odd = 0.0

    def pick(self, *good: str) -> str:
        return self.choice(WORDS if self.random() < self.odd else good)

    def overrides(self, most: int = 3) -> list[str]:
        return [self._odd_override() if self.random() < self.odd else self.choice(OVERRIDES)
                for _ in range(self.randint(0, most))]

    def _odd_override(self) -> str:
        key, value = self.choice(KEYS), self.choice(WORDS)
        return self.choice([f'{key}={value}', f'{key}={value}', f'{key}.x={value}', value])

    def options(self, least: int = 0, **good: str) -> list[str]:
        """The first `least` of the options, and a few of the others. good: name -> values, parted by spaces; '': a flag."""
        found = []
        for number, (name, values) in enumerate(good.items()):
            if number < least or self.random() < 0.3:
                value, name = self.pick(*values.split(' ')), '--' + name.replace('_', '-')
                found.append([name] if not values else [f'{name}={value}'] if self.random() < 0.3 else [name, value])
        self.shuffle(found)
        return [word for words in found for word in words]


def damage(rng: Draws, path: Path) -> str:
    """Damage one file. Returns what was done to it."""
    content, kind = path.read_bytes(), rng.choice(KINDS)
    if kind == 'value' and path.suffix in ('.json', '.jsonl', '.yaml', '.csv'):
        change = _change_json if path.suffix.startswith('.json') else _change_line
        return f'{path}: {change(rng, path, content.decode())}'
    path.unlink()
    place = rng.randrange(len(content))
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'zero':
        path.symlink_to('/dev/zero')
    elif kind != 'gone':
        flipped = content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:]
        path.write_bytes({'cut': content[:place], 'empty': b'', 'junk': rng.randbytes(200),
                          'grow': content[:place] + rng.randbytes(9) + content[place:]}.get(kind, flipped))
    return f'{path}: {kind}'


def _change_line(rng: Draws, path: Path, text: str) -> str:
    """Of YAML what stands after the colon; of CSV all."""
    lines = text.splitlines(keepends=True)
    number, value = rng.randrange(len(lines)), rng.choice(WORDS)
    yaml = re.sub(r'[^:,\n]*$', lambda _: f' {value}', lines[number], count=1)
    lines[number] = yaml if path.suffix == '.yaml' else f'{value},{value}\n'
    path.write_text(''.join(lines), errors='surrogateescape')
    return f'line {number + 1} with {value[:100]!r}'


def _change_json(rng: Draws, path: Path, text: str) -> str:
    """A value at any depth."""
    lines = text.splitlines() if path.suffix == '.jsonl' else [text]
    number, value = rng.randrange(len(lines)), rng.choice(VALUES)
    tree = [json.loads(lines[number])]
    below, key = tree, 0
    while isinstance(below[key], (dict, list)) and below[key] and rng.random() < 0.8:
        below = below[key]
        key = rng.choice(list(below) if isinstance(below, dict) else range(len(below)))
    below[key] = '@@'
    lines[number] = json.dumps(tree[0]).replace('"@@"', value)
    path.write_text('\n'.join(lines) + '\n')
    return f'line {number + 1}, {key} with {value[:100]}'


def listing(folder: Path) -> dict[str, object]:
    """Each path below `folder` -> its bytes, or what else it is."""
    def content(path: Path) -> object:
        mode = path.lstat().st_mode
        return path.read_bytes() if stat.S_ISREG(mode) else os.readlink(path) if stat.S_ISLNK(mode) else stat.S_IFMT(mode)
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob('*'))}
