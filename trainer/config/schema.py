"""This module has the kinds of values that sections are made of; each number has its unit and its bounds.

The bounds are far beyond what anyone trains. They catch slips that would otherwise show only later: by a run folder that is
left behind, a machine out of memory, or a number that float32 cannot hold.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from annotated_types import Ge, GroupedMetadata, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticKnownError

from imago.trainer.config.duration import in_words, to_seconds
from imago.trainer.config.resolution import base_and_doublings, parse_resolution
from imago.trainer.data.locations import is_folder, is_location, masked
from imago.trainer.wording import one_line, shown

MOST_IMAGES = 1 << 17


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


def name_of(section: type[Section]) -> str:
    """Return the name of a section that is one of several: the only value of its key `name`."""
    name, = get_args(section.model_fields['name'].annotation)
    return name


def read_section(value: object, kinds: Mapping[str, type[Section]], usual: str) -> object:
    """Return the section, one of `kinds`, that `value` names, or the `usual` one. Its errors look like those of a union."""
    if not isinstance(value, dict):
        return value
    name = value.get('name', usual)
    if not isinstance(name, str) or name not in kinds:
        raise PydanticKnownError('union_tag_invalid', {'discriminator': 'name', 'tag': shown(name),
                                                       'expected_tags': ', '.join(kinds)})
    return kinds[name].model_validate(value | {'name': name})


class _Fixed:
    """This marks a key that makes a run what it is: a run folder is never resumed with another value of it."""


FIXED = _Fixed()    # as in Annotated[kind, FIXED]; on a section it marks all keys in it


def to_size(value: object) -> object:
    """Turn `512`, `'768x512'` (height x width) or `[768, 512]` into (height, width) in pixels."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return parse_resolution(shown(value))


def check_size(value: tuple[int, int]) -> tuple[int, int]:
    base_and_doublings(value)
    return value


def no_boolean(value: object) -> object:
    if isinstance(value, bool):    # Python takes it for an int
        raise ValueError('this key takes a number')
    return value


def check_path(value: str) -> str:
    """Return the path. Raises ValueError for one that nobody can mean, and for control characters, which would break lines."""
    if not value:
        raise ValueError('it is empty; give a path')
    if value != one_line(value, len(value)):
        raise ValueError('it has control characters; choose another name')
    if (longest := max(len(os.fsencode(part)) for part in value.split('/'))) > 255:
        raise ValueError(f'a part of it has {longest} bytes, of 255 that a name may have; choose a shorter one')
    if value.startswith('~'):
        whole = os.path.expanduser(value)
        raise ValueError('~ stands for a home folder in a shell alone; write the whole path'
                         + (f', {shown(whole)}' if whole != value else ''))
    return value


@dataclass(frozen=True)
class Within(GroupedMetadata):
    """This marks a number from `least` to `most`, as in Annotated[int, Within(1, 9)]."""

    least: float
    most: float

    def __iter__(self) -> Iterator[object]:
        yield BeforeValidator(no_boolean)
        yield Ge(self.least)
        yield Le(self.most)


PathName = Annotated[str, Field(max_length=4096), AfterValidator(check_path)]
Folder = Annotated[PathName, AfterValidator(is_folder)]
# the configuration in memory holds it whole; all that is made of it (files, messages, comparisons) holds it masked
Location = Annotated[str, AfterValidator(is_location), PlainSerializer(masked)]

Seed = Annotated[int, Within(0, (1 << 63) - 1)]
Count = Annotated[int, Within(1, 1_000_000)]          # of things that repeat: steps, reports, checkpoints
Images = Annotated[int, Within(1, MOST_IMAGES)]       # of one step; each rank draws the latents for all of them
Pixels = Annotated[int, Within(1, 99_999)]
Width = Annotated[int, Within(1, 1 << 16)]            # of a vector, or channels of a layer
Depth = Annotated[int, Within(1, 64)]                 # of layers or blocks
Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(to_size)]
Resolution = Annotated[Size, AfterValidator(check_size)]     # a size that networks can make

Kimg = Annotated[float, Within(0.001, 1e8)]              # thousand images shown; the limits are 1 image and 12 digits of images
Minutes = Annotated[float, Within(0.001, 1e5)]
# in seconds; written as 90s, 4m, 2h or 1h30m
Duration = Annotated[int, BeforeValidator(to_seconds), Field(ge=1, le=1 << 32), PlainSerializer(in_words, return_type=str)]
Start = Annotated[float, Within(0, 1e8)]                 # kimg from the beginning
Weight = Annotated[float, Within(0, 1e9)]                # of a penalty; 0 leaves it out
Number = Annotated[float, Within(-1e9, 1e9)]
Share = Annotated[float, Within(0, 1)]
Positive = Annotated[Weight, Field(gt=0)]
PositiveShare = Annotated[Share, Field(gt=0)]
Beta = Annotated[Share, Field(lt=1)]
