"""How parameters and gradients are spread over ranks. The only file with a gradient collective."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from imago.trainer.config.load import OptimConfig, ParallelConfig
from imago.trainer.engine.optim import Adam
from imago.trainer.engine.zero import ZeroAdam
from imago.trainer.models.batch_norm import synchronise
from imago.trainer.ranks import dist

Optimizer = Adam | ZeroAdam


class FlatGradients:
    """The gradients of parameters as views into one buffer a dtype: summed in one call, and zero where none arrived."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
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
        """L2 norm over all gradients, a scalar []; not finite if one of them is not."""
        return torch.stack([buffer.float().norm() for buffer in self.buffers]).norm()


class Strategy:
    """One process: whatever it computed is already whole."""

    def __init__(self) -> None:
        self._gradients: dict[nn.Module, FlatGradients] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        """Take charge of a network, the same on all ranks, before it gets an optimizer. trained: it will have gradients."""
        if trained:
            self._gradients[network] = FlatGradients(network.parameters())

    def optimizer(self, network: nn.Module, config: OptimConfig) -> Optimizer:
        """Of a network that was spread."""
        return Adam(network, config)

    @contextmanager
    def whole(self, *networks: nn.Module) -> Iterator[None]:
        """Parameters of `networks` are whole inside, to run and to read, not to change."""
        yield

    def zero_gradients(self, *networks: nn.Module) -> None:
        """Before the first backward of a phase that trains them."""
        for network in networks:
            self._gradients[network].zero()

    def sync_gradients(self, *networks: nn.Module) -> tuple[float, list[int]]:
        """Average the gradients over the ranks, for the optimizers; inside of `whole`.

        Returns the L2 norm of the average over all; where that is not finite, also the ranks whose own gradients were not.
        """
        norms, bad_ranks = zip(*map(self._sync, networks), strict=True)
        return math.hypot(*norms), sorted(set().union(*bad_ranks))

    def _sync(self, network: nn.Module) -> tuple[float, list[int]]:
        """The same of one network."""
        norm = self._gradients[network].norm().item()
        return norm, [] if math.isfinite(norm) else [0]

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average small tensors [...] over the ranks; names and shapes stay."""
        return values


class DataParallel(Strategy):
    """Every rank holds everything and sees its own part of the batch; one all-reduce a network after backward.

    A DDP wrapper would be silently wrong here: it misses gradients of a penalty-only backward.
    """

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        super().spread(network, trained)
        if trained:
            synchronise(network, _DifferentiableSum.apply, dist.world_size())

    def _sync(self, network: nn.Module) -> tuple[float, list[int]]:
        gradients = self._gradients[network]
        own_norm = gradients.norm()
        for buffer in gradients.buffers:
            _average(buffer)
        return _blame(gradients.norm(), own_norm)

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([value.flatten() for value in values.values()])
        _average(flat)
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}


class ZeroSharded(DataParallel):
    """Networks are whole on every rank. Moments, and between the average and the step gradients, are in parts."""

    def __init__(self) -> None:
        super().__init__()
        self._adams: dict[nn.Module, ZeroAdam] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        if trained:
            synchronise(network, _DifferentiableSum.apply, dist.world_size())

    def optimizer(self, network: nn.Module, config: OptimConfig) -> Optimizer:
        adam = self._adams[network] = ZeroAdam(network, config)
        return adam

    def zero_gradients(self, *networks: nn.Module) -> None:
        for network in networks:
            self._gradients[network] = FlatGradients(self._adams[network].parameters)

    def _sync(self, network: nn.Module) -> tuple[float, list[int]]:
        norm = super()._sync(network)
        average, = self._gradients.pop(network).buffers
        self._adams[network].take_gradient(average)
        network.zero_grad(set_to_none=True)     # the whole ones
        return norm


class FullySharded(DataParallel):
    """Each rank keeps a part of every parameter, gradient, moment and average; networks are whole while a phase runs.

    FSDP2 (Zhao et al. 2023, arXiv 2304.11277) holds and gathers the parameters. Its reduction of gradients is off: it hangs
    on the network's own call, and silently leaves out mapping or synthesis called alone, and penalties on weights.
    """

    def __init__(self, replicas: int) -> None:
        """replicas: groups of consecutive ranks (nodes) that keep one whole set of parts each."""
        super().__init__()
        shape = replicas, dist.world_size() // replicas
        self._mesh = init_device_mesh(dist.device().type, shape, mesh_dim_names=('replicas', 'parts'))
        self._parts: dict[nn.Module, GradientParts] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        # between forward and the second backward nothing may be freed: `whole` gathers and frees
        fully_shard(network, mesh=self._mesh, reshard_after_forward=False)
        network.set_requires_gradient_sync(False)
        network.set_reshard_after_backward(False)
        if trained:
            self._parts[network] = GradientParts(network, self._mesh)
            synchronise(network, _DifferentiableSum.apply, dist.world_size())

    @contextmanager
    def whole(self, *networks: nn.Module) -> Iterator[None]:
        dist.moved()
        for network in networks:
            network.unshard()
        try:
            yield
        finally:
            for network in networks:
                network.reshard()

    def zero_gradients(self, *networks: nn.Module) -> None:
        for network in networks:
            network.zero_grad(set_to_none=True)

    def _sync(self, network: nn.Module) -> tuple[float, list[int]]:
        norm = _blame(*self._parts[network].take_average(network))
        network.zero_grad(set_to_none=True)     # the whole ones
        return norm


class GradientParts:
    """This rank's part of a network's average gradient: the `grad` of each sharded parameter is a view into one buffer."""

    def __init__(self, network: nn.Module, mesh: DeviceMesh) -> None:
        self._mesh, self._count = mesh, mesh['parts'].size()
        parameters = list(network.parameters())
        lengths = part_lengths(parameters, self._count)
        self._buffer = torch.zeros(sum(lengths), dtype=parameters[0].dtype, device=parameters[0].device)
        self._starts = [sum(lengths[:index]) for index in range(len(lengths))]
        for parameter, start in zip(parameters, self._starts, strict=True):
            own = parameter.to_local()
            view = self._buffer[start:start + own.numel()].view_as(own)
            parameter.grad = DTensor.from_local(view, mesh, parameter.placements, run_check=False, shape=parameter.shape,
                                                stride=parameter.stride())

    def take_average(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """From the gradients of the whole parameters, 0 where there is none. Returns two norms []: its own, this rank's."""
        whole = self._buffer.new_zeros(self._count, len(self._buffer))
        for parameter, start in zip(network.parameters(), self._starts, strict=True):
            if parameter.grad is not None:
                for row, part in zip(whole, parameter.grad.chunk(self._count)):
                    row[start:start + part.numel()] = part.flatten()
        own_norm = whole.norm()
        torch.distributed.reduce_scatter(self._buffer, list(whole), group=self._mesh.get_group('parts'))
        torch.distributed.all_reduce(self._buffer, group=self._mesh.get_group('replicas'))
        self._buffer /= dist.world_size()
        square = self._buffer.double().norm().square()
        torch.distributed.all_reduce(square, group=self._mesh.get_group('parts'))
        return square.sqrt(), own_norm


class _DifferentiableSum(torch.autograd.Function):
    """The sum over ranks, [...] -> [...], for statistics inside a network: what each rank does with it counts for all."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        dist.moved()
        total = tensor.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _DifferentiableSum.apply(gradient)


def make_strategy(config: ParallelConfig) -> Strategy:
    """Of all ranks together; one process needs none. `config.replicas` must divide the ranks."""
    if dist.world_size() == 1:
        return Strategy()
    if config.strategy == 'fsdp':
        return FullySharded(config.replicas)
    return ZeroSharded() if config.strategy == 'zero' else DataParallel()


def parts_of(config: ParallelConfig, world: int) -> int:
    """How many ranks a network is cut over."""
    return world // config.replicas if config.strategy == 'fsdp' else 1


def part_lengths(parameters: list[nn.Parameter], count: int) -> list[int]:
    """Space that one of `count` parts of each takes. DTensor cuts dimension 0; the last parts may be smaller or empty."""
    return [-(-len(p) // count) * (p.numel() // len(p)) for p in parameters]


def _average(tensor: Tensor) -> None:
    torch.distributed.all_reduce(tensor)
    tensor /= dist.world_size()


def _blame(norm: Tensor, own_norm: Tensor) -> tuple[float, list[int]]:
    """The norm of the average, and if it is not finite the ranks whose own was not."""
    if math.isfinite(norm.item()):
        return norm.item(), []
    finite = dist.gather(bool(torch.isfinite(own_norm)))
    return norm.item(), [rank for rank, fine in enumerate(finite) if not fine]
