"""A phase's forward and backward are captured as a CUDA graph, so that one launch takes the place of some thousand.

A graph repeats kernels on the addresses that they had: what a phase reads must lie in tensors that stay, and numbers that change
from step to step must be tensors too (`Scalars`). Random numbers are those of an uncaptured phase, as the seed is set outside.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imago.trainer.ranks import dist

WARM_UPS = 2      # runs before the capture, which count: libraries choose and load their kernels in them
Run = Callable[[Any], dict[str, Tensor]]          # micro-batch -> values by name
Recorder = Callable[[Callable[[], dict[str, Tensor]]], tuple[Callable[[], None], dict[str, Tensor]]]


class Graphs:
    """Holds a graph for each phase and each shape of its micro-batches. `required`: a capture that fails is an error."""

    def __init__(self, required: bool = False, record: Recorder | None = None) -> None:
        """record: captures a function without running it; returns how to run it, and its outputs, which every run overwrites."""
        self._required, self._record = required, record or CudaRecorder()
        self._graphs: dict[tuple, Graph] = {}
        self._refused = False

    def of(self, name: str, run: Run) -> Run:
        """Return what does the same as `run`, which forward and backward of phase `name` are in, on the same networks."""
        return lambda micro_batch: self._run(name, run, micro_batch)

    def _run(self, name: str, run: Run, micro_batch: Any) -> dict[str, Tensor]:
        if self._refused:
            return run(micro_batch)
        key = name, tuple((tensor.shape, tensor.dtype) for tensor in tensors_of(micro_batch))
        graph = self._graphs.setdefault(key, Graph())
        if graph.runs < WARM_UPS:
            graph.runs += 1
            return run(micro_batch)
        if graph.replay is None:
            graph.inputs = each_tensor(micro_batch, torch.clone)
            try:
                graph.replay, graph.outputs = self._record(lambda: run(graph.inputs))
            except RuntimeError as error:
                told = f'phase {name} cannot be captured ({str(error).splitlines()[0]})'
                if self._required:
                    raise RuntimeError(f'graphs=on: {told}; use graphs=off') from error
                dist.print0(f'graphs: {told}, so that none is')
                self._refused = True
                self._graphs.clear()
                return run(micro_batch)
        torch._foreach_copy_(tensors_of(graph.inputs), tensors_of(micro_batch))
        graph.replay()
        return {name: output.clone() for name, output in graph.outputs.items()}


class Graph:
    runs = 0
    replay: Callable[[], None] | None = None
    inputs: Any = None
    outputs: dict[str, Tensor]


class CudaRecorder:
    """Captures on the GPU. All graphs share one pool of memory, as no two run at a time and their outputs are copied."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        # other threads, such as the one that pins batches, go on calling CUDA
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode='thread_local'):
            outputs = run()
        self._pool = self._pool or graph.pool()
        return graph.replay, outputs


class Scalars:
    """Numbers that change from step to step. On a GPU each is a tensor [] that stays, for kernels to read; else a float."""

    kept_on: tuple[str, ...] = ('cuda',)      # types of devices

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type in self.kept_on else None
        self._values: dict[str, Tensor | float] = {}

    def set(self, name: str, value: float) -> None:
        if self._device is None:
            self._values[name] = value
        elif name in self._values:
            self._values[name].fill_(value)  # type: ignore[union-attr]
        else:
            self._values[name] = torch.full((), value, device=self._device)

    def __getitem__(self, name: str) -> Tensor | float:
        return self._values[name]


def each_tensor(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with other tensors [...] in place of its own. It consists of dataclasses, dicts, tuples and lists."""
    if isinstance(value, Tensor):
        return of(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: each_tensor(getattr(value, field.name), of) for field in fields(value)})
    if isinstance(value, dict):
        return {key: each_tensor(part, of) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(each_tensor(part, of) for part in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors [...] in a value, in the order of `each_tensor`."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor
    each_tensor(value, note)
    return found
