"""How parameters and gradients are spread over ranks. The only file with a gradient collective."""

import math

import torch
import torch.distributed
from torch import Tensor, nn

from trainer import dist
from trainer.models.batch_norm import synchronise


class FlatGradients:
    """The gradients of a network as views into one buffer a dtype: summed in one call, and zero where none arrived."""

    def __init__(self, network: nn.Module):
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in network.parameters():
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        self.buffers = []
        for dtype, parameters in by_dtype.items():
            buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=dtype, device=parameters[0].device)
            for parameter, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)
            self.buffers.append(buffer)

    def zero(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    def norm(self) -> Tensor:
        """L2 norm over all gradients, a scalar; not finite if one of them is not."""
        return torch.stack([buffer.float().norm() for buffer in self.buffers]).norm()


class Strategy:
    """One process: whatever it computed is already whole."""

    def __init__(self, *networks: nn.Module):
        self._gradients = {network: FlatGradients(network) for network in networks}

    def zero_gradients(self, network: nn.Module) -> None:
        self._gradients[network].zero()

    def sync_gradients(self, network: nn.Module) -> tuple[float, list[int]]:
        """Average the gradients over the ranks, in place.

        Returns the L2 norm of the average; where that is not finite, also the ranks whose own gradients were not.
        """
        norm = self._gradients[network].norm().item()
        return norm, [] if math.isfinite(norm) else [0]

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average small tensors over the ranks."""
        return values


class DataParallel(Strategy):
    """Every rank holds everything and sees its own part of the batch; one all-reduce a network after backward.

    A DDP wrapper would be silently wrong here: it misses gradients of a penalty-only backward.
    """

    def __init__(self, *networks: nn.Module):
        super().__init__(*networks)
        for network in networks:
            synchronise(network, _DifferentiableSum.apply, dist.world_size())

    def sync_gradients(self, network: nn.Module) -> tuple[float, list[int]]:
        gradients = self._gradients[network]
        own_norm = gradients.norm()
        for buffer in gradients.buffers:
            _average(buffer)
        norm = gradients.norm().item()
        if math.isfinite(norm):
            return norm, []
        finite = dist.gather(bool(torch.isfinite(own_norm)))
        return norm, [rank for rank, fine in enumerate(finite) if not fine]

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([value.flatten() for value in values.values()])
        _average(flat)
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}


class _DifferentiableSum(torch.autograd.Function):
    """The sum over ranks, for statistics inside a network: what each rank does with it counts for all."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _DifferentiableSum.apply(gradient)


def make_strategy(*networks: nn.Module) -> Strategy:
    return (DataParallel if dist.world_size() > 1 else Strategy)(*networks)


def _average(tensor: Tensor) -> None:
    torch.distributed.all_reduce(tensor)
    tensor /= dist.world_size()
