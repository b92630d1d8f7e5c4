"""Growing networks while a game is played: their level of detail, the optimizers' restarts, and pictures at that level."""

from typing import Literal

from torch import Tensor
from torch.nn import functional

from imago.trainer.config.schedule import Stage
from imago.trainer.engine.optim import restart
from imago.trainer.engine.state import TrainState


def begin_level(state: TrainState, stage: Stage, restart_at: Literal['start', 'both']) -> None:
    """Set the level of detail of all networks. Optimizers restart as a fade starts, and with `both` also as it ends."""
    for network in state.networks.values():
        for name, buffer in network.named_buffers():
            if name.rpartition('.')[2] == 'lod':
                buffer.fill_(stage.lod)
    # The side is negative in a fade if the end of the fade is to restart the optimizers too.
    side = -stage.side if restart_at == 'both' and stage.lod % 1 else stage.side
    if state.memory['side'] != side:
        for optimizer in state.optimizers.values():
            restart(optimizer)
        state.memory['side'].fill_(side)


def at_level(images: Tensor, lod: float) -> Tensor:
    """Bring pictures [NCHW] of full size to that of level `lod`; while it fades in, they are as blurred as the fakes are."""
    images = functional.avg_pool2d(images, 1 << int(lod))
    if lod % 1:
        coarse = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2)
        images = images.lerp(coarse, lod % 1)
    return images
