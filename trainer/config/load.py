"""The configuration has a strict schema. It is read from YAML (with one `base:`) and overrides, and checked as a whole."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, model_validator

from imago.trainer.config import games, networks
from imago.trainer.config.division import check_division
from imago.trainer.config.former import GAMES_ONCE_LOSSES, translate
from imago.trainer.config.games import GameConfig, GameSection, Latent
from imago.trainer.config.hints import meant
from imago.trainer.config.networks import NetworkConfig, NetworkSection, StyleGAN2
from imago.trainer.config.plugins import MOST_PLUGINS, ModuleName, import_plugins, names_in, require_plugins
from imago.trainer.config.rules import check_combinations
from imago.trainer.config.schema import FIXED, Duration, Images, Kimg, PathName, Section, Seed
from imago.trainer.config.sections import (
    CONTINUOUS,
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EMAConfig,
    EvaluateConfig,
    GrowthConfig,
    GuardConfig,
    LogConfig,
    LossConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    RegularizerConfig,
)
from imago.trainer.config.shipped import CONFIGS, names
from imago.trainer.config.yaml_words import parse_yaml
from imago.trainer.data.locations import hide_secrets
from imago.trainer.data.reading import read_text
from imago.trainer.wording import MOST_NAMED, listed, one_line, shown

MOST_BYTES, MOST_DOTS = 1 << 18, 9    # of a file; in a key
DEEPSPEED = 'deepspeed>=0.19,<0.20'
UNCHECKED = 'unchecked'    # context of a validation that skips the rules on combinations


class Config(Section):
    run_dir: PathName
    seed: Annotated[Seed, FIXED] = 0
    device: Literal['auto', 'cpu', 'cuda', 'mps'] = 'auto'
    plugins: Annotated[tuple[ModuleName, ...], Field(max_length=MOST_PLUGINS)] = ()   # modules of a user's own
    graphs: Literal['auto', 'on', 'off'] = 'auto' # CUDA graphs of phases, with the same bits; auto: where nothing forbids them
    compile: bool = False                         # torch.compile G and D for the main phases; penalties stay eager
    total_kimg: Kimg = 25000.0
    stop_after: Duration | None = None            # each start trains so long at most: 90s, 4m, 2h; null: until total_kimg
    batch: Images = 64                            # images a step, over all ranks
    micro_batch: Images = 8                       # images a forward pass on one rank
    data: DataConfig
    game: GameConfig = Latent()
    network: Annotated[NetworkConfig, FIXED] = StyleGAN2()
    growth: GrowthConfig | None = None            # for networks that grow; None: full size from the start
    loss: LossConfig = LossConfig()
    regularizers: RegularizerConfig = RegularizerConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    precision: PrecisionConfig = PrecisionConfig()
    ema: EMAConfig = EMAConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guard: GuardConfig = GuardConfig()

    @property
    def total_nimg(self) -> int:
        return round(self.total_kimg * 1000)

    @model_validator(mode='after')
    def check(self, info: ValidationInfo) -> Self:
        if info.context != UNCHECKED:
            check_combinations(self)
        return self

    def changed(self, overrides: list[str]) -> Self:
        """Return this configuration with more overrides. Combinations are not checked. Raises ValueError like `load_config`."""
        tree = self.model_dump(mode='json', exclude_unset=True)
        for override in overrides:
            tree = _merged(tree, _parse_override(override))
        return type(self).model_validate(tree, context=UNCHECKED)

    def check_world(self, world: int) -> None:
        """Raise ValueError unless the run can be spread over `world` ranks: batches, lanes and replicas must divide."""
        if self.parallel.strategy == 'zero' and importlib.util.find_spec('deepspeed') is None:
            raise ValueError('parallel.strategy=zero needs the package deepspeed, which is not installed; '
                             f"pip install '{DEEPSPEED}', or use parallel.strategy=fsdp")
        if world % self.parallel.replicas:
            raise ValueError(f'parallel.replicas={self.parallel.replicas} does not divide the {world} ranks; '
                             'use the number of nodes, or 1')
        check_division(self, world)
        for key, batch, micro_key, micro_batch in self.batches() if self.loss.reuse_fakes else []:
            if batch > micro_batch * world:
                raise ValueError(f'loss.reuse_fakes=true with {key}={batch} on {world} ranks and {micro_key}={micro_batch}: the '
                                 f'fakes of one micro-batch a rank are kept, with all that their gradient needs; use {micro_key}='
                                 f'{batch // world}, or loss.reuse_fakes=false')

    def batches(self) -> list[tuple[str, int, str, int]]:
        """Return (key, batch, key, micro-batch) as set outside of growth, and for each stage of growth with its own value."""
        batches, micro_batches = (self.growth.batch, self.growth.micro_batch) if self.growth else ({}, {})
        found = [('batch', self.batch, 'micro_batch', self.micro_batch)]
        for side in sorted(batches.keys() | micro_batches.keys()):
            batch = (f'growth.batch.{side}', batches[side]) if side in batches else ('batch', self.batch)
            micro = (f'growth.micro_batch.{side}', micro_batches[side]) if side in micro_batches else \
                ('micro_batch', self.micro_batch)
            found.append((*batch, *micro))
        return found


UNION_TAGS = ('number', 'ramp', 'classes', CONTINUOUS)   # pydantic puts them into the paths of keys


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or the name of one in `configs/`) and apply `dotted.key=value` overrides.

    A ValueError names the key or value, the limit and the fix; for an unknown key it names the nearest known one.
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
    import_plugins(names_in(tree.get('plugins')))
    return parse_config(tree, str(source))


def parse_config(tree: dict, source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        told = [_explain(detail) for detail in error.errors()[:MOST_NAMED]]
        more = error.error_count() - len(told)
        raise ValueError(f'{shown(source)}: {"; ".join(told)}' + (f'; and {more} more' if more else '')) from None


def parse_kept(tree: dict, source: str) -> Config:
    """Parse a configuration that Imago wrote itself, perhaps in an older version, which had other keys.

    ValueError if it needs plugins that the user has not named.
    """
    require_plugins(names_in(tree.get('plugins')), source)
    return parse_config(translate(tree), source)


def find_config(source: str | Path) -> Path:
    path = Path(source)
    packaged = CONFIGS / f'{source}.yaml'
    if os.path.isfile(path):    # unlike Path.is_file, it does not raise for a name that is too long
        return path
    if os.path.isfile(packaged):
        return packaged
    raise ValueError(f'no configuration file {shown(source)}; give a path, or one of: {listed(names(), str(source))}')


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode='json'), sort_keys=False)


def flatten(tree: dict, prefix: str = '') -> dict[str, Any]:
    """Turn {'a': {'b': 1}} into {'a.b': 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat


def changed_keys(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} where values differ; a value is None where a configuration lacks the key."""
    before, after = flatten(old.model_dump(mode='json')), flatten(new.model_dump(mode='json'))
    return {key: (before.get(key), after.get(key)) for key in (before | after) if before.get(key) != after.get(key)}


def is_fixed(key: str) -> bool:
    """Return whether this dotted key, or a section around it, is marked FIXED, in any kind of section that it may be in."""
    kinds: list[type[Section]] = [Config]
    for part in key.split('.'):
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        if any(FIXED in field.metadata for field in fields):
            return True
        kinds = [kind for field in fields for kind in _sections(field.annotation)]
    return False


def read_yaml(path: Path) -> dict:
    if not os.path.isfile(path):
        raise ValueError(f'no configuration file {shown(path)}')
    try:
        tree = parse_yaml(read_text(path, MOST_BYTES))
    except ValueError as error:
        raise ValueError(f'{shown(path)} cannot be read: {hide_secrets(str(error))}') from error
    if not isinstance(tree, dict):
        raise ValueError(f'{shown(path)} does not hold `key: value` lines')
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition('=')
    if not equals or not key or key.count('.') > MOST_DOTS:
        raise ValueError(f'override {shown(hide_secrets(text))} is not of the form dotted.key=value')
    try:
        tree: Any = parse_yaml(value)
    except ValueError as error:
        raise ValueError(f'the value of override {shown(hide_secrets(text))} cannot be read: {hide_secrets(str(error))}; quote it'
                         ) from error
    for part in reversed(key.split('.')):
        tree = {part: tree}
    return tree


def _merged(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _explain(detail: Mapping[str, Any]) -> str:
    """Put one pydantic error into our words: key, value, limit, fix."""
    key = shown('.'.join(str(part) for part in detail['loc'] if part not in UNION_TAGS))
    if detail['type'] == 'extra_forbidden':
        known = _known_keys(Config)
        if key in known:
            return f'unknown key {key}: {key.partition(".")[0]}s of another name have it'
        return f'unknown key {key}' + (meant(key, known) or '; imago train CONFIG --print-config shows the known ones')
    if detail['type'] in ('model_type', 'model_attributes_type') and detail['loc']:
        return f'{key}={hide_secrets(shown(detail["input"]))}: it is a section; give keys in it, e.g. {_first_key(key)}=VALUE'
    if detail['type'] == 'union_tag_invalid':
        known = detail['ctx']['expected_tags'].replace("'", '')
        return f'{key}.name={shown(detail["ctx"]["tag"])}: take one of {known}'
    if key == 'loss.name' and detail['input'] in GAMES_ONCE_LOSSES:
        return f'loss.name={detail["input"]}: it is game.name={detail["input"]} now'
    if detail['type'] == 'missing':
        return f'{key} is missing; add it to the file or give {key}=VALUE'
    message = one_line(detail['msg'].removeprefix('Value error, '))
    return f'{key}={hide_secrets(shown(detail["input"]))}: {message}' if detail['loc'] else message


def _first_key(section: str) -> str:
    keys = [key for key in _known_keys(Config) if key.startswith(f'{section}.')]
    return f'{section}.name' if f'{section}.name' in keys else keys[0]


def _known_keys(section: type[BaseModel], prefix: str = '') -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in _sections(field.annotation):
            keys += _known_keys(kind, f'{prefix}{name}.')
    return list(dict.fromkeys(keys))


def _sections(annotation: object) -> Iterator[type[Section]]:
    """Yield the kinds of section that a key of this type may hold."""
    if annotation is GameSection:
        yield GameSection
        yield from games.SECTIONS.values()
    elif annotation is NetworkSection:
        yield NetworkSection
        yield from networks.SECTIONS.values()
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
