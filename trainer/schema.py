"""What every section of the configuration is made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from trainer.data.locations import is_folder, is_location, masked
from trainer.resolution import base_and_doublings, parse_resolution


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True, allow_inf_nan=False)


def to_size(value: object) -> object:
    """`512`, `'768x512'` (height x width) or `[768, 512]` -> (height, width) in pixels."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return parse_resolution(str(value))


def check_size(value: tuple[int, int]) -> tuple[int, int]:
    base_and_doublings(value)
    return value


Resolution = Annotated[tuple[int, int], BeforeValidator(to_size), AfterValidator(check_size)]
# whole in the configuration at hand, but masked in all that is made of it: files, messages, comparisons
Location = Annotated[str, AfterValidator(is_location), PlainSerializer(masked)]
Folder = Annotated[str, AfterValidator(is_folder)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]     # of a penalty; 0: left out
Share = Annotated[float, Field(ge=0, le=1)]
