"""The configuration: a strict schema, read from YAML (with one `base:`) and dotted overrides, and checked as a whole."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from trainer.resolution import base_and_doublings, parse_resolution

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'


def to_size(value: object) -> object:
    """`512`, `'768x512'` (height x width) or `[768, 512]` -> (height, width) in pixels."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return parse_resolution(str(value))


def check_size(value: tuple[int, int]) -> tuple[int, int]:
    base_and_doublings(value)
    return value


Resolution = Annotated[tuple[int, int], BeforeValidator(to_size), AfterValidator(check_size)]


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    path: str                                     # folder, http(s):// or pipe: with {} for the file name
    resolution: Resolution | None = None          # (height, width); None: as packed
    conditional: bool = False                     # train on the dataset's classes
    lanes: PositiveInt = 64                       # a multiple of every number of ranks the run will ever have
    flip: bool = False                            # horizontal flips, at random
    workers: int = Field(2, ge=0)                 # decoding processes per rank
    cache_dir: str | None = None                  # for remote shards; None: the user's cache folder
    cache_gb: PositiveFloat = 20.0


class NetworkConfig(Section):
    name: Literal['stylegan2'] = 'stylegan2'
    z_dim: PositiveInt = 512
    w_dim: PositiveInt = 512
    mapping_layers: PositiveInt = 8
    channel_base: PositiveInt = 32768             # channels at a resolution: min(channel_base / resolution, channel_max)
    channel_max: PositiveInt = 512
    mbstd_group: PositiveInt = 4
    low_precision: Literal['none', 'bf16', 'fp16'] = 'none'
    low_precision_blocks: int = Field(0, ge=0)    # how many blocks, from the highest resolution down


class LossConfig(Section):
    name: Literal['nonsaturating'] = 'nonsaturating'
    r1_gamma: float = Field(10.0, ge=0)
    r1_interval: PositiveInt = 16                 # steps
    pl_weight: float = Field(2.0, ge=0)
    pl_interval: PositiveInt = 4                  # steps
    pl_decay: float = Field(0.01, gt=0, le=1)
    pl_batch_shrink: PositiveInt = 2
    style_mixing: float = Field(0.9, ge=0, le=1)


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    g_lr: PositiveFloat = 0.002
    d_lr: PositiveFloat = 0.002
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    eps: PositiveFloat = 1e-8


class EMAConfig(Section):
    half_life_kimg: PositiveFloat = 10.0
    rampup: float | None = Field(None, gt=0)      # half-life at most this share of the images shown; None: no ramp
    w_avg_beta: float = Field(0.998, ge=0, lt=1)


class CheckpointConfig(Section):
    interval_kimg: PositiveFloat = 200.0
    keep: PositiveInt = 3


class LogConfig(Section):
    interval_kimg: PositiveFloat = 4.0
    grid_kimg: PositiveFloat = 200.0
    grid: tuple[PositiveInt, PositiveInt] = (4, 8)   # rows, columns
    keys: bool = False                            # write the sample keys of each step, for audits


class Config(Section):
    run_dir: str
    seed: int = Field(0, ge=0)
    device: Literal['auto', 'cpu', 'cuda'] = 'auto'
    compile: bool = False                         # torch.compile G and D for the main phases; penalties stay eager
    total_kimg: PositiveFloat = 25000.0
    batch: PositiveInt = 64                       # images a step, over all ranks
    micro_batch: PositiveInt = 8                  # images a forward pass on one rank
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def total_nimg(self) -> int:
        return round(self.total_kimg * 1000)

    def check_world(self, world: int) -> None:
        """ValueError unless batch, lanes, micro-batch and `world` ranks divide as the data order needs."""
        if self.data.lanes % world:
            raise ValueError(f'data.lanes={self.data.lanes} is not a multiple of the {world} ranks; '
                             f'choose lanes that every number of ranks you will use divides, e.g. {self.data.lanes * world}')
        if self.batch % self.data.lanes:
            raise ValueError(f'batch={self.batch} is not a multiple of data.lanes={self.data.lanes}; '
                             f'use batch={_next_multiple(self.batch, self.data.lanes)} or lanes that divide the batch')
        if self.batch % (world * self.micro_batch):
            raise ValueError(f'batch={self.batch} is not a multiple of {world} ranks x micro_batch={self.micro_batch}; '
                             f'use batch={_next_multiple(self.batch, world * self.micro_batch)} or another micro_batch')


# What makes a run what it is: a run folder is never resumed with other values of these.
FIXED_ON_RESUME = ('seed', 'network', 'data.resolution', 'data.conditional', 'data.lanes', 'data.flip')


def load_config(source: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file (or the name of one in `configs/`) and apply `dotted.key=value` overrides.

    ValueError names the key or value, the limit and the fix; an unknown key names the nearest known one.
    """
    tree = read_yaml(find_config(source))
    base = tree.pop('base', None)
    if base is not None:
        path = find_config(source).parent / str(base)
        parent = read_yaml(path)
        if 'base' in parent:
            raise ValueError(f'{path} is the base of {source} and has a base itself; only one level is allowed')
        tree = _merged(parent, tree)
    for override in overrides:
        tree = _merged(tree, _parse_override(override))
    return parse_config(tree, str(source))


def parse_config(tree: dict, source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f'{source}: ' + '; '.join(_explain(detail) for detail in error.errors())) from None


def find_config(source: str | Path) -> Path:
    path = Path(source)
    packaged = CONFIGS / f'{source}.yaml'
    if not path.is_file() and packaged.is_file():
        return packaged
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in CONFIGS.glob('*.yaml')))
        raise ValueError(f'no configuration file {source}; give a path, or one of: {known}')
    return path


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode='json'), sort_keys=False)


def flatten(tree: dict, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat


def changed_keys(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (old, new)."""
    before, after = flatten(old.model_dump(mode='json')), flatten(new.model_dump(mode='json'))
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def is_fixed(key: str) -> bool:
    return any(key == fixed or key.startswith(fixed + '.') for fixed in FIXED_ON_RESUME)


def read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f'no configuration file {path}')
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is not valid YAML: {" ".join(str(error).split())}') from None
    if not isinstance(tree, dict):
        raise ValueError(f'{path} does not hold `key: value` lines')
    return tree


def _parse_override(text: str) -> dict:
    key, equals, value = text.partition('=')
    if not equals or not key:
        raise ValueError(f'override {text!r} is not of the form dotted.key=value')
    try:
        tree = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f'the value of override {text!r} is not valid YAML; quote it') from None
    for part in reversed(key.split('.')):
        tree = {part: tree}
    return tree


def _merged(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _explain(detail: dict) -> str:
    """One pydantic error in our words: key, value, limit, fix."""
    key = '.'.join(str(part) for part in detail['loc'])
    if detail['type'] == 'extra_forbidden':
        near = difflib.get_close_matches(key, _known_keys(Config), n=1, cutoff=0.4)
        return f'unknown key {key}' + (f'; did you mean {near[0]}?' if near else '; imago train --dry-run prints the known ones')
    if detail['type'] == 'missing':
        return f'{key} is missing; add it to the file or give {key}=VALUE'
    return f'{key}={detail["input"]!r}: {detail["msg"].removeprefix("Value error, ")}'


def _known_keys(section: type[BaseModel], prefix: str = '') -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f'{prefix}{name}.')
    return keys


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of
