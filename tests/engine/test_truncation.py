import pytest
import torch

from imago.trainer.engine.randomness import truncated_normal


def test_truncated_normal_draws_again():
    z = truncated_normal((20_000,), 0.5, torch.Generator().manual_seed(0))
    whole = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert z.abs().max() <= 0.5
    assert torch.equal(z[whole.abs() <= 0.5], whole[whole.abs() <= 0.5]), 'values within the threshold stay'
    # the deviation of N(0, 1) within +-0.5; clamping would give 0.40
    assert abs(z.std().item() - 0.2840) < 0.005


def test_truncated_normal_refuses_what_would_not_end():
    for threshold in (0.0, -1.0, float('nan')):
        with pytest.raises(ValueError, match='too small: take at least 0.01'):
            truncated_normal((4,), threshold, torch.Generator())
