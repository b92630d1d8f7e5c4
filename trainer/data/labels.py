"""Classes are turned into what networks take, and found by what people call them."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from imago.trainer.wording import listed


def to_one_hot(labels: Tensor, c_dim: int) -> Tensor:
    """Turn classes [N] into one-hot rows [N, c_dim], float32; c_dim is 0 for an unconditional network."""
    return functional.one_hot(labels, c_dim).float() if c_dim else labels.new_zeros(len(labels), 0).float()


def class_index(name: str, class_names: Sequence[str]) -> int:
    """Return the number of a class that is given by name or number. Raises ValueError, which names the classes, for any other."""
    if name in class_names:
        return class_names.index(name)
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(class_names):
        return int(name)
    known = f'the model knows {listed(class_names, name)} (or 0 to {len(class_names) - 1})'
    raise ValueError(f'no class {name[:80]!r}; ' + (known if class_names else 'the model is unconditional'))
