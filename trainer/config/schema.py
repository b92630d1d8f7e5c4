"""What every section of the configuration is made of: kinds of values, each number with its unit and its bounds.

The bounds are far beyond what anyone trains. They keep a slip of the hand from costs that only show later: a run folder that
is left behind, a machine without memory, a figure beyond what a float32 holds.
"""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from imago.trainer.config.resolution import base_and_doublings, parse_resolution
from imago.trainer.data.locations import is_folder, is_location, masked
from imago.trainer.wording import one_line, shown

MOST_IMAGES = 1 << 17


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


class _Fixed:
    """The mark of a key that makes a run what it is: a run folder is never resumed with another value."""


FIXED = _Fixed()    # in Annotated[kind, FIXED]; of a section: all that is in it


def to_size(value: object) -> object:
    """`512`, `'768x512'` (height x width) or `[768, 512]` -> (height, width) in pixels."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return parse_resolution(shown(value))


def check_size(value: tuple[int, int]) -> tuple[int, int]:
    base_and_doublings(value)
    return value


def no_boolean(value: object) -> object:
    if isinstance(value, bool):    # an int to Python
        raise ValueError('this key takes a number')
    return value


def check_path(value: str) -> str:
    """ValueError for what no shell would have meant, and for control characters, which would break lines."""
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


def whole(least: int, most: int) -> object:
    """The kind of a whole number within bounds."""
    return Annotated[int, BeforeValidator(no_boolean), Field(ge=least, le=most)]


def real(least: float, most: float) -> object:
    """The kind of a number within bounds."""
    return Annotated[float, BeforeValidator(no_boolean), Field(ge=least, le=most)]


PathName = Annotated[str, Field(max_length=4096), AfterValidator(check_path)]
Folder = Annotated[PathName, AfterValidator(is_folder)]
# whole in the configuration at hand, but masked in all that is made of it: files, messages, comparisons
Location = Annotated[str, AfterValidator(is_location), PlainSerializer(masked)]

Seed = whole(0, (1 << 63) - 1)
Count = whole(1, 1_000_000)          # of what repeats: steps, reports, checkpoints
Images = whole(1, MOST_IMAGES)       # of one step: each rank draws the latents of all
Pixels = whole(1, 99_999)
Width = whole(1, 1 << 16)            # of a vector, or channels of a layer
Depth = whole(1, 64)                 # of layers or blocks
Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(to_size)]
Resolution = Annotated[Size, AfterValidator(check_size)]     # that networks can make

Kimg = real(0.001, 1e8)              # 1000 images shown: from one image to what 12 digits count
Start = real(0, 1e8)                 # kimg from the beginning
Weight = real(0, 1e9)                # of a penalty; 0: left out
Number = real(-1e9, 1e9)
Share = real(0, 1)
Positive = Annotated[Weight, Field(gt=0)]
PositiveShare = Annotated[Share, Field(gt=0)]
Beta = Annotated[Share, Field(lt=1)]
