"""Classes as networks want them, and as people name them."""

from torch import Tensor
from torch.nn import functional

from imago.trainer.wording import listed


def to_one_hot(labels: Tensor, c_dim: int) -> Tensor:
    """[N] classes -> [N, c_dim] float32; [N, 0] for an unconditional network."""
    return functional.one_hot(labels, c_dim).float() if c_dim else labels.new_zeros(len(labels), 0).float()


def class_index(name: str, class_names: list[str]) -> int:
    """The number of a class given by name or number. ValueError names the ones there are."""
    if name in class_names:
        return class_names.index(name)
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(class_names):
        return int(name)
    known = f'the model knows {listed(class_names, name)} (or 0 to {len(class_names) - 1})'
    raise ValueError(f'no class {name[:80]!r}; ' + (known if class_names else 'the model is unconditional'))
