"""A stand-in for CUDA graphs on a CPU: it notes operations with the tensors that they had, and repeats them on these.

Like a graph, it keeps every number of Python's that it met, reads the inputs where they lay, and overwrites its outputs.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = op(*args, **kwargs)
        if not op.is_view:    # a view sees what is repeated into its base
            self.calls.append((op, args, kwargs, outputs))
        return outputs

    def replay(self):
        with torch.no_grad():
            for op, args, kwargs, outputs in self.calls:
                for old, new in zip(tree_leaves(outputs), tree_leaves(op(*args, **kwargs))):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():    # not in place
                        old.copy_(new)

