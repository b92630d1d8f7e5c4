"""How long a save stalls training, against writing the same state with torch.save while training waits.

    python tests/bench/save.py [CONFIG] [key=value ...]     (default: stylegan2-256, on one process)

The state is a real one, the pictures are not needed. Medians of several rounds, in one run.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from imago.trainer.config.load import load_config
from imago.trainer.data.manifest import Manifest, Shard
from imago.trainer.engine.parallel import Strategy
from imago.trainer.engine.state import make_state
from imago.trainer.plan.preflight import tensor_bytes
from imago.trainer.ranks import dist
from imago.trainer.runs.checkpoint import Checkpoints

ROUNDS = 5


def main(source: str = 'stylegan2-256', *overrides: str) -> None:
    config = load_config(source, list(overrides))
    dist.init('cpu')
    manifest = Manifest(config.data.resolution, 3, 'webp', (), (), (Shard('none.tar', 0, 1, 1, '0' * 64),))
    state = make_state(config, config.game.plan(config, manifest), dist.device(), Strategy())
    stalls, totals, blocking = [], [], []
    with tempfile.TemporaryDirectory(dir='.') as scratch:
        checkpoints = Checkpoints(Path(scratch) / 'checkpoints', 1, {})
        for round in range(ROUNDS):
            state.nimg = round
            started = time.perf_counter()
            checkpoints.save(state)
            stalls.append(time.perf_counter() - started)
            checkpoints.wait()
            totals.append(time.perf_counter() - started)
            started = time.perf_counter()
            torch.save(state.tree(), Path(scratch) / 'blocking.pt')
            blocking.append(time.perf_counter() - started)
    stall, total, block = map(statistics.median, (stalls, totals, blocking))
    print(f'state {tensor_bytes(state.tree()) / 1e6:.0f} MB: stall {stall:.2f} s, '
          f'complete (checksummed, on disk) after {total:.2f} s; '
          f'torch.save blocks {block:.2f} s; stall / torch.save {stall / block:.2f}')


if __name__ == '__main__':
    main(*sys.argv[1:])
