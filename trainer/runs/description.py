"""What a checkpoint or an export says of its generator, which may be a stranger's: checked before anything is built."""

import inspect
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from trainer import models
from trainer.config.games import GAME_NAMES
from trainer.config.networks import NETWORK_NAMES, NetworkConfig
from trainer.config.schema import Resolution, Section, whole
from trainer.data.conditions import from_text
from trainer.data.sealed import Count

MOST_PIXELS = 1 << 26   # of a picture: 8192 x 8192
_NETWORK = TypeAdapter(NetworkConfig)
Normalise = tuple[Literal['spectral', 'stable_rank'], Annotated[float, Field(gt=0, le=1)]]   # kind, share
OLDER = frozenset(('model', 'options', 'class_names', 'class_counts', 'nimg'))   # what it said before it had checksums


class OfPictures(Section):
    """Those of a generator's options that are no keys of the configuration's section `network`."""

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


class Several(Section):
    """Options of several generators in one."""

    model: Literal[NETWORK_NAMES]
    count: whole(2, 64)
    options: dict[str, Any]
    normalise: Normalise | None = None


class Description(Section):
    game: Literal[GAME_NAMES] = 'latent'    # what was not said before there were other games
    model: Literal[*NETWORK_NAMES, 'several']
    options: dict[str, Any]                 # of models.build_network
    class_names: tuple[str, ...]            # () of an unconditional generator
    class_counts: tuple[Count, ...]
    conditions: str = ''                    # of a plan: some that pictures are made for, where they are no classes
    nimg: Count                             # images that it was trained on
    weights_sha256: str = ''                # of an export's weights
    checksum: str = ''                      # of the file that says all this; '' if that is an older one

    @model_validator(mode='before')
    @classmethod
    def translate(cls, tree: Any) -> Any:
        """MAD-GAN's generators were an option of the network before they were a game."""
        options = tree.get('options') if isinstance(tree, dict) else None
        if not isinstance(options, dict) or 'generators' not in options:
            return tree
        inside = {key: value for key, value in options.items() if key not in ('generators', 'normalise')}
        outside = {key: value for key, value in options.items() if key == 'normalise'}
        several = {'model': tree.get('model'), 'count': options['generators'], 'options': inside, **outside}
        return tree | {'game': 'mad_gan', 'model': 'several', 'options': several}

    @model_validator(mode='after')
    def check(self) -> Self:
        """Each option is within the bounds of the configuration, and goes to the constructor."""
        model, options = self.model, self.options
        if model == 'several':
            _check(TypeAdapter(Several), options)
            model, options = options['model'], options['options']
        known = {'normalise', *inspect.signature(models.NETWORKS['generator'][model]).parameters}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f'{model} has no option {unknown[0][:40]!r}')
        of_pictures = {key: value for key, value in options.items() if key in OfPictures.model_fields}
        own = {key: value for key, value in options.items() if key not in of_pictures}
        _check(TypeAdapter(OfPictures), of_pictures)
        _check(_NETWORK, {'name': model, **own})
        classes, c_dim = len(self.class_names), options['c_dim']
        if self.conditions:
            if classes or not c_dim:
                raise ValueError(f'it has conditions, {classes} class names and c_dim={c_dim}')
            from_text(self.conditions, c_dim)
            return self
        if len(self.class_counts) != classes or c_dim not in (0, classes):
            raise ValueError(f'it has {classes} class names, {len(self.class_counts)} counts and c_dim={c_dim}')
        if classes and not any(self.class_counts):
            raise ValueError('all its classes are empty')
        return self


def _check(kind: TypeAdapter, options: dict) -> None:
    try:
        kind.validate_python(options)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        raise ValueError(f'{".".join(map(str, detail["loc"]))}: {detail["msg"][:200]}') from None


def without_content(about: dict) -> nn.Module:
    """The generator of a `Description` with shapes alone, on the meta device. ValueError if it cannot be built."""
    try:
        with torch.device('meta'):
            return models.build_network('generator', about['model'], about['options'])
    except Exception as error:  # of options that a stranger has put together constructors may raise anything
        raise ValueError(f'it describes a {about["model"]} that cannot be built: {error}') from error
