"""A checkpoint or an export describes its networks. It may be a stranger's, so it is checked before anything is built."""

import inspect
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from imago.trainer import models
from imago.trainer.config.load import Config
from imago.trainer.config.networks import SECTIONS, NetworkConfig
from imago.trainer.config.plan import Plan
from imago.trainer.config.plugins import names_in, require_plugins
from imago.trainer.config.schema import Resolution, Section, Size, Within
from imago.trainer.data.conditions import from_text
from imago.trainer.data.sealed import Count
from imago.trainer.games import GAMES
from imago.trainer.wording import one_line

MOST_PIXELS = 1 << 26   # pixels of a picture: 8192 x 8192
MOST_OPTION = 1 << 16   # largest number where no section of the configuration has a bound
_NETWORK = TypeAdapter(NetworkConfig)
Normalise = tuple[Literal['spectral', 'stable_rank'], Annotated[float, Field(gt=0, le=1)]]   # kind, share
Text = Annotated[str, Field(max_length=2000), AfterValidator(one_line)]
OLDER = frozenset(('model', 'options', 'class_names', 'class_counts', 'nimg'))   # facts in files from before there were checksums


class OfPictures(Section):
    """These options of a generator are no keys of the configuration's section `network`."""

    resolution: Resolution
    img_channels: Literal[1, 3]
    c_dim: Count
    normalise: Normalise | None = None

    @model_validator(mode='after')
    def check(self) -> Self:
        height, width = self.resolution
        if height * width > MOST_PIXELS:
            raise ValueError(f'resolution {height}x{width} has more than {MOST_PIXELS} pixels')
        return self


def known_family(name: str) -> str:
    if name not in SECTIONS:
        raise ValueError(f'there are no networks {name[:40]!r}')
    return name


class Several(Section):
    """These are the options of several generators in one."""

    model: Annotated[str, AfterValidator(known_family)]
    count: Annotated[int, Within(2, 64)]
    options: dict[str, Any]
    normalise: Normalise | None = None


class Network(Section):
    """Describes a network that a maker needs."""

    role: str                               # a key of models.NETWORKS
    model: str
    options: dict[str, Any]                 # options for models.build_network

    @model_validator(mode='after')
    def check(self) -> Self:
        """Each option must be one of the constructor, within the configuration's bounds; `_check_plain` checks the others."""
        role, model, options = self.role, self.model, self.options
        if model not in models.NETWORKS.get(role, ()):
            raise ValueError(f'model: Input should be a known {role[:40]}, not {model[:40]!r}')
        if role == 'generator' and model == 'several':
            _check(TypeAdapter(Several), options)
            model, options = options['model'], options['options']
        known = {'normalise', *inspect.signature(models.NETWORKS[role][model]).parameters}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f'{model} has no option {unknown[0][:40]!r}')
        of_pictures = {key: value for key, value in options.items() if key in OfPictures.model_fields}
        own = {key: value for key, value in options.items() if key not in of_pictures}
        if role == 'generator':
            _check(TypeAdapter(OfPictures), of_pictures)
            _check(_NETWORK, {'name': model, **own})
        else:
            _check_plain(options)
        return self


class Description(Section):
    game: str = 'latent'                    # older files name no game, as there was only this one
    networks: dict[str, Network]            # networks that the maker of the game needs, by name
    class_names: tuple[str, ...]            # () for an unconditional generator
    class_counts: tuple[Count, ...]
    conditions: str = ''                    # the plan's conditions for pictures, if they are no classes
    crop: Size | None = None                # (height, width) in px of the part that was shown of each picture; None: all of it
    nimg: Count                             # images on which they were trained
    plugins: tuple[str, ...] = ()           # modules that must be imported first
    data: Text = ''                         # what they were trained on, in words
    licence: Text = ''                      # of the weights
    version: Text = ''                      # of the Imago that exported them
    weights_sha256: str = ''                # SHA-256 of an export's weights
    checksum: str = ''                      # checksum of the file with these facts; '' in an older file

    @model_validator(mode='before')
    @classmethod
    def translate(cls, tree: Any) -> Any:
        """Files say less of a lone generator, see `written`; MAD-GAN's generators were an option before they were a game."""
        if not isinstance(tree, dict):
            return tree
        require_plugins(names_in(tree.get('plugins')), 'this generator')
        if not {'model', 'options'} & tree.keys():
            return tree
        model, options = tree.get('model'), tree.get('options')
        rest = {key: value for key, value in tree.items() if key not in ('model', 'options')}
        if isinstance(options, dict) and 'generators' in options:
            inside = {key: value for key, value in options.items() if key not in ('generators', 'normalise')}
            outside = {key: value for key, value in options.items() if key == 'normalise'}
            options = {'model': model, 'count': options['generators'], 'options': inside, **outside}
            model, rest['game'] = 'several', 'mad_gan'
        return rest | {'networks': {'G': {'role': 'generator', 'model': model, 'options': options}}}

    @model_validator(mode='after')
    def check(self) -> Self:
        if self.game not in GAMES:
            raise ValueError(f'there is no game called {self.game[:40]!r}; the code that adds it must be imported first')
        if {name: network.role for name, network in self.networks.items()} != GAMES[self.game].made_of:
            raise ValueError(f'its networks are not those of the game {self.game}: {", ".join(GAMES[self.game].made_of)}')
        classes, c_dims = len(self.class_names), [_inner(network.options).get('c_dim', 0) for network in self.networks.values()]
        if self.conditions:
            if classes or not all(c_dims):
                raise ValueError(f'it has conditions, {classes} class names and c_dim={min(c_dims)}')
            from_text(self.conditions, c_dims[0])
            return self
        if len(self.class_counts) != classes or not {0, classes} >= set(c_dims):
            raise ValueError(f'it has {classes} class names, {len(self.class_counts)} counts and c_dim={max(c_dims)}')
        if classes and not any(self.class_counts):
            raise ValueError('all its classes are empty')
        return self


def describe_maker(config: Config, plan: Plan) -> dict:
    """Return the facts, as plain JSON values, from which the averages of a run make pictures without the run."""
    networks = {name: {'role': spec.role, 'model': spec.model, 'options': spec.options}
                for name, spec in plan.networks.items() if name in GAMES[config.game.name].made_of}
    facts = {'game': config.game.name, 'networks': networks, 'class_names': plan.class_names, 'class_counts': plan.class_counts,
             'conditions': plan.conditions, 'crop': config.data.crop and list(config.data.crop), 'plugins': list(config.plugins)}
    return written({key: value for key, value in facts.items() if value or key not in ('conditions', 'crop', 'plugins')})


def written(about: dict) -> dict:
    """Return the facts of a `Description` as files have them: a lone generator is not in a table, for the sake of older files."""
    networks = about['networks']
    if networks.keys() != {'G'} or networks['G']['role'] != 'generator':
        return about
    G = networks['G']
    return {key: value for key, value in about.items() if key != 'networks'} | {'model': G['model'], 'options': G['options']}


def _inner(options: dict) -> dict:
    """Return the options of one generator, also for several in one."""
    return options['options'] if isinstance(options.get('options'), dict) else options


def _check_plain(options: dict) -> None:
    """Raise ValueError unless `options`, for which the configuration has no section, are words and numbers within bounds."""
    for key, value in options.items():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(part, (str, int, float, type(None))) or not isinstance(part, str) and abs(part or 0) > MOST_OPTION:
                raise ValueError(f'{key[:40]}={str(value)[:40]} is no word or number up to {MOST_OPTION}')


def _check(kind: TypeAdapter, options: dict) -> None:
    try:
        kind.validate_python(options)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        raise ValueError(f'{".".join(map(str, detail["loc"]))}: {detail["msg"][:200]}') from None


def build_networks(about: dict) -> dict[str, nn.Module]:
    """Build new networks of a `Description`, by name. They are frozen and in evaluation mode."""
    return {name: models.build_network(each['role'], each['model'], each['options']).requires_grad_(False).eval()
            for name, each in about['networks'].items()}


def without_content(about: dict) -> dict[str, nn.Module]:
    """Build the same without content, on the meta device. Raises ValueError if they, or their maker, cannot be built."""
    try:
        with torch.device('meta'):
            networks = build_networks(about)
            GAMES[about['game']].maker(networks, about['class_counts'], about['conditions'])
            return networks
    except Exception as error:  # constructors may raise anything for a stranger's options
        names = ', '.join(f'{each["role"]} {each["model"]}' for each in about['networks'].values())
        raise ValueError(f'it describes a {names} that cannot be built: {error}') from error
