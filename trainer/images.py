"""Pictures for people: grids from fixed latents, beside real ones."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainer.labels import to_one_hot
from trainer.randomness import Draws, draw


def to_pictures(images: Tensor) -> np.ndarray:
    """[NCHW] in [-1, 1] -> [NHWC] uint8, rounded and clamped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """[NHWC] uint8 -> one picture, row by row; missing places stay black."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(sheet.reshape(rows * height, columns * width, channels).squeeze())


def fixed_draws(seed: int, count: int, G: nn.Module, class_counts: tuple[int, ...]) -> Draws:
    """The latents of a run's grids: the same from its first image to its last."""
    return draw(seed, 0, 'grid', count, z_dim=G.z_dim, num_ws=G.num_ws, style_mixing=0.0,
                class_counts=class_counts if G.c_dim else ())


@torch.no_grad()
def generate(G: nn.Module, draws: Draws, device: torch.device, truncation_psi: float = 1.0, batch: int = 16) -> np.ndarray:
    """Pictures [NHWC] uint8 with the constant noise, `batch` at a time."""
    parts = []
    for start in range(0, len(draws.z), batch):
        part = draws[start:start + batch].to(device)
        labels = to_one_hot(part.labels, G.c_dim)
        parts.append(to_pictures(G(part.z, labels, truncation_psi=truncation_psi, noise='const')))
    return np.concatenate(parts)
