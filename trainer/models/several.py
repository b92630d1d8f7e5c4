"""MAD-GAN's generators are one network here: they share all but their last layers.

Ghosh et al. 2018, "Multi-Agent Diverse Generative Adversarial Networks", section 4: initial layers are tied.
"""

import torch
from torch import Tensor, nn


class SeveralGenerators(nn.Module):
    """Takes and returns what one generator does. Generator i % k makes row i of a batch, unless the caller says which."""

    def __init__(self, generators: list[nn.Module]) -> None:
        """All are of one family and size. Each keeps the modules that its `tail` names; the others become the first's."""
        super().__init__()
        first = generators[0]
        for other in generators[1:]:
            _share(first, other, first.tail)
        self.generators = nn.ModuleList(generators)
        self.z_dim, self.c_dim, self.resolution, self.num_ws = first.z_dim, first.c_dim, first.resolution, first.num_ws
        self.latents = getattr(first, 'latents', 'normal')

    def forward(self, z: Tensor, c: Tensor, made_by: list[int] | None = None) -> Tensor:
        """z [N, z_dim] and c [N, c_dim] -> pictures [NCHW]. made_by: the generator of each row."""
        made_by = made_by or [row % len(self.generators) for row in range(len(z))]
        order = sorted(range(len(z)), key=made_by.__getitem__)
        counts = [made_by.count(index) for index in range(len(self.generators))]
        parts = zip(self.generators, z[order].split(counts), c[order].split(counts), strict=True)
        images = torch.cat([G(own_z, own_c) for G, own_z, own_c in parts if len(own_z)])
        pictures = images.unbind()    # unlike that of an index, its gradient has no sums, which a GPU would take in any order
        return torch.stack([pictures[row] for row in sorted(range(len(z)), key=order.__getitem__)])


def _share(first: nn.Module, other: nn.Module, tail: tuple[str, ...]) -> None:
    """Make the modules of `other` those of `first`, unless their name is in `tail` or above a name in it."""
    for name, child in list(other.named_children()):
        below = tuple(part.removeprefix(name + '.') for part in tail if part.startswith(name + '.'))
        if below:
            _share(first.get_submodule(name), child, below)
        elif name not in tail:
            setattr(other, name, first.get_submodule(name))
    for name, _ in list(other.named_parameters(recurse=False)):
        setattr(other, name, getattr(first, name))
