"""Facts are kept in JSON files whose damage is noticed: a checksum covers all that they say."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from imago.trainer.data.durable import write_text
from imago.trainer.data.reading import parse_json, read_text

CHECKSUM = 'checksum'
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Facts = TypeVar('Facts', bound=BaseModel)


def write_sealed(path: Path, tree: dict, private: bool = False) -> None:
    """Put `tree` in place as JSON, with a checksum over what it says. Only the owner can read a `private` file."""
    write_text(path, json.dumps(tree | {CHECKSUM: _checksum(tree)}, indent=1) + '\n', private)


def read_sealed(path: Path, before: Collection[str]) -> dict:
    """Return what `write_sealed` wrote, with its checksum.

    Files that are older than checksums have no other keys than `before`. Any other file without a checksum counts as damaged,
    since only the checksum's name may be damaged. Raises ValueError for a damaged or wrong file; OSError like `open`.
    """
    try:
        tree = parse_json(read_text(path))
        if not isinstance(tree, dict):
            raise ValueError('it does not hold facts by their names')
        if not tree.keys() <= set(before) and tree.get(CHECKSUM) != _checksum(tree):
            raise ValueError('its checksum is not that of what it says')
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is damaged: {error}') from error
    return tree


def facts(kind: type[Facts], tree: dict, where: object) -> Facts:
    """Return `tree` as `kind`. Raises ValueError, which names in one line the first fact that is wrong."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        key = '.'.join(map(str, detail['loc']))[:80].encode('unicode_escape').decode()
        raise ValueError(f'{where} is damaged: {key or "it"}: {detail["msg"].removeprefix("Value error, ")}') from None


def _checksum(tree: dict) -> str:
    """Return the SHA-256 of `tree` without its checksum. The order of keys does not matter, nor do spaces."""
    kept = json.loads(json.dumps({key: value for key, value in tree.items() if key != CHECKSUM}))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
