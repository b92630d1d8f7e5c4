"""This file spreads parameters and gradients over ranks. No other file has a gradient collective."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor, nn

from imago.trainer.config.load import OptimConfig, ParallelConfig
from imago.trainer.engine.optim import Adam
from imago.trainer.engine.zero import ZeroAdam
from imago.trainer.models.batch_norm import synchronise
from imago.trainer.ranks import dist

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Optimizer = Adam | ZeroAdam
ALIGN = 4    # elements of float32 in 16 bytes
BUCKET_BYTES = 25 << 20      # enough to use a link fully


class FlatGradients:
    """Makes gradients views into one buffer for each dtype, so that one call sums them, and those that no backward gave are 0."""

    def __init__(self, parameters: Iterable[nn.Parameter], align: int = 1):
        """align: each view begins at a multiple of so many elements; what lies between them stays 0."""
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        self.buffers, self.parts = [], []
        for dtype, parameters in by_dtype.items():
            lengths = [aligned(p.numel(), align) for p in parameters]
            buffer = torch.zeros(sum(lengths), dtype=dtype, device=parameters[0].device)
            for parameter, part in zip(parameters, buffer.split(lengths), strict=True):
                parameter.grad = part[:parameter.numel()].view_as(parameter)
            self.buffers.append(buffer)
            self.parts.append((buffer, parameters, lengths))

    def zero(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    def norm(self) -> Tensor:
        """Return the L2 norm over all gradients, a scalar []; it is not finite if one of them is not."""
        return torch.stack([buffer.float().norm() for buffer in self.buffers]).norm()


class Overlap:
    """Sums a flat buffer of gradients over the ranks, bucket by bucket, while backward still computes those of earlier layers."""

    def __init__(self, gradients: FlatGradients) -> None:
        self._buckets: list[tuple[Tensor, int]] = []      # last layers first: a part of a buffer, and how many gradients fill it
        self._bucket_of: dict[Tensor, int] = {}
        for buffer, parameters, lengths in reversed(gradients.parts):
            end = len(buffer)
            while parameters:
                start, count = end, 0
                while parameters and (count == 0 or (end - start) * buffer.element_size() < BUCKET_BYTES):
                    self._bucket_of[parameters[-1]] = len(self._buckets)
                    start, count, parameters, lengths = start - lengths[-1], count + 1, parameters[:-1], lengths[:-1]
                self._buckets.append((buffer[start:end], count))
                end = start
        self._missing = [count for _, count in self._buckets]
        self._begun: list[torch.distributed.Work] = []
        self._own_norms: list[Tensor] = []

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Inside, a bucket is sent once the gradients in it are there. All ranks send in the same order."""
        hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in self._bucket_of]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _arrived(self, parameter: Tensor) -> None:
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._begun) < len(self._buckets) and self._missing[len(self._begun)] == 0:
            self._send()

    def _send(self) -> None:
        bucket, _ = self._buckets[len(self._begun)]
        self._own_norms.append(bucket.float().norm())
        self._begun.append(torch.distributed.all_reduce(bucket, async_op=True))

    def finish(self) -> Tensor:
        """Send the rest, wait for all, and make sums means. Returns the norm [] of what this rank had."""
        while len(self._begun) < len(self._buckets):    # a backward need not reach every parameter
            self._send()
        for (bucket, _), work in zip(self._buckets, self._begun, strict=True):
            work.wait()
            bucket /= dist.world_size()
        return torch.stack(self._own_norms).norm()


class Strategy:
    """Serves a single process, where everything is whole already."""

    def __init__(self) -> None:
        self._gradients: dict[nn.Module, FlatGradients] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        """Take charge of a network, the same on all ranks, before it gets an optimizer. trained: whether it gets gradients."""
        if trained:
            # a single element would leave all that follow at addresses that cannot be read 16 bytes at a time
            self._gradients[network] = FlatGradients(network.parameters(), align=ALIGN)

    def optimizer(self, network: nn.Module, config: OptimConfig) -> Optimizer:
        """Make the optimizer of a network that was spread."""
        return Adam(network, config)

    @contextmanager
    def whole(self, *networks: nn.Module) -> Iterator[None]:
        """Inside, the parameters of `networks` are whole; they may be used and read, but not changed."""
        yield

    def zero_gradients(self, *networks: nn.Module) -> None:
        """Set gradients to 0, before the first backward of a phase that trains these networks."""
        for network in networks:
            self._gradients[network].zero()

    @contextmanager
    def last_backward(self, *networks: nn.Module) -> Iterator[None]:
        """Enter this around the last backward of a phase that trains these networks: their gradients may be sent meanwhile."""
        yield

    def sync_gradients(self, *networks: nn.Module) -> tuple[Tensor, Tensor]:
        """Average the gradients over the ranks, for the optimizers; call it inside of `whole`.

        Returns two L2 norms [] over all networks, of the average and of this rank's own gradients. Each is not finite if one of
        its gradients is not.
        """
        norms, own_norms = zip(*map(self._sync, networks), strict=True)
        return torch.stack(norms).norm(), torch.stack(own_norms).norm()

    def _sync(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Do the same for one network."""
        norm = self._gradients[network].norm()
        return norm, norm

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average small tensors [...] over the ranks; names and shapes stay the same."""
        return values


class DataParallel(Strategy):
    """Every rank holds everything and sees its own part of the batch. After backward, each network needs one all-reduce.

    A DDP wrapper would be silently wrong here: it misses the gradients of a backward that has only a penalty.
    """

    def __init__(self) -> None:
        super().__init__()
        self._overlaps: dict[nn.Module, Overlap] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        super().spread(network, trained)
        if trained:
            synchronise(network, _DifferentiableSum.apply, dist.world_size())

    @contextmanager
    def last_backward(self, *networks: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for network in networks:
                self._overlaps[network] = Overlap(self._gradients[network])
                stack.enter_context(self._overlaps[network].during_backward())
            yield

    def _sync(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        gradients = self._gradients[network]
        own_norm = (self._overlaps.pop(network, None) or Overlap(gradients)).finish()
        return gradients.norm(), own_norm

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([value.flatten() for value in values.values()])
        _average(flat)
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}


class ZeroSharded(DataParallel):
    """Networks are whole on every rank. Moments are kept in parts, and so are averaged gradients until the step."""

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

    def _sync(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        norms = super()._sync(network)
        average, = self._gradients.pop(network).buffers
        self._adams[network].take_gradient(average)
        network.zero_grad(set_to_none=True)     # the gradients of whole parameters are no longer needed
        return norms


class FullySharded(DataParallel):
    """Each rank keeps a part of every parameter, gradient, moment and average; networks are whole while a phase runs.

    FSDP2 (Zhao et al. 2023, arXiv 2304.11277) holds and gathers the parameters. Its reduction of gradients is off: it hangs
    when the whole network is called, and it silently leaves out mapping or synthesis that is called alone, and penalties on
    weights.
    """

    def __init__(self, replicas: int) -> None:
        """replicas: number of groups of consecutive ranks (nodes); each group keeps one whole set of parts."""
        super().__init__()
        from torch.distributed.device_mesh import init_device_mesh  # torch's FSDP takes more than a second to import
        shape = replicas, dist.world_size() // replicas
        self._mesh = init_device_mesh(dist.device().type, shape, mesh_dim_names=('replicas', 'parts'))
        self._parts: dict[nn.Module, GradientParts] = {}

    def spread(self, network: nn.Module, trained: bool = True) -> None:
        # Nothing may be freed between forward and the second backward, so only `whole` gathers and frees.
        from torch.distributed.fsdp import fully_shard
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

    last_backward = Strategy.last_backward

    def _sync(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        norms = self._parts[network].take_average(network)
        network.zero_grad(set_to_none=True)     # the gradients of whole parameters are no longer needed
        return norms


class GradientParts:
    """Holds this rank's part of a network's average gradient. The `grad` of each sharded parameter is a view into one buffer."""

    def __init__(self, network: nn.Module, mesh: 'DeviceMesh') -> None:
        from torch.distributed.tensor import DTensor
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
        """Average the gradients of the whole parameters over the ranks; a missing one counts as 0.

        Returns two norms []: that of the average, and that of this rank's own gradients.
        """
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
        return square.sqrt().float(), own_norm


class _DifferentiableSum(torch.autograd.Function):
    """Sums over ranks, [...] -> [...], for statistics inside a network. Backward sums the gradients of all ranks, too."""

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
    """Make the strategy of all ranks together. `config.replicas` must divide the number of ranks."""
    if dist.world_size() == 1:
        return Strategy()
    if config.strategy == 'fsdp':
        return FullySharded(config.replicas)
    return ZeroSharded() if config.strategy == 'zero' else DataParallel()


def part_lengths(parameters: list[nn.Parameter], count: int) -> list[int]:
    """Return the space that one of `count` parts of each parameter takes. DTensor cuts dimension 0, so the last parts may be
    smaller or empty."""
    return [-(-len(p) // count) * (p.numel() // len(p)) for p in parameters]


def aligned(count: int, align: int = ALIGN) -> int:
    """Return the next multiple of `align` elements."""
    return -(-count // align) * align


def _average(tensor: Tensor) -> None:
    torch.distributed.all_reduce(tensor)
    tensor /= dist.world_size()
