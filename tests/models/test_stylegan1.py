"""StyleGAN's styles and noise. Its pictures at each level of detail are in test_growing.py."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from imago.trainer.models import mix_styles
from imago.trainer.models.stylegan1 import Generator, from_published

GOLDEN = Path(__file__).parents[1] / 'golden' / 'stylegan1.safetensors'


@pytest.fixture(scope='module')
def golden():
    """(G, tensors), with the recorded weights."""
    with safe_open(GOLDEN, 'pt') as file:
        config = json.loads(file.metadata()['config'])
    tensors = load_file(GOLDEN)
    G = Generator(config['z_dim'], c_dim=0, w_dim=32, resolution=(config['resolution'],) * 2, img_channels=3,
                  mapping_layers=config['mapping_layers'], channel_base=config['fmaps_base'],
                  channel_max=config['fmaps_max'])
    G.load_state_dict(from_published({name.removeprefix('G.'): tensor for name, tensor in tensors.items()
                                      if name.startswith('G.')}))
    return G, tensors


def tiny():
    torch.manual_seed(0)
    return Generator(z_dim=16, c_dim=0, w_dim=16, resolution=(16, 16), img_channels=3, mapping_layers=2, channel_base=128,
                     channel_max=16)


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_golden_styles(golden):
    G, tensors = golden
    ws = G.mapping(tensors['z'], torch.zeros(4, 0))
    assert ws.shape == (4, G.num_ws, 32)
    assert relative_error(ws[:, 0], tensors['w']) < 1e-4


def test_golden_truncation(golden):
    G, tensors = golden
    images = G(tensors['z'], torch.zeros(4, 0), truncation_psi=0.7, noise='const')
    assert relative_error(images, tensors['img_psi07_lod0.0']) < 1e-4


def test_truncation_of_the_first_layers():
    G = tiny()
    G.mapping.w_avg.copy_(torch.randn(16))
    z, c = torch.randn(2, 16), torch.zeros(2, 0)
    full, cut = G.mapping(z, c), G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=2)
    torch.testing.assert_close(cut[:, :2], (full[:, :2] + G.mapping.w_avg) / 2)
    assert torch.equal(cut[:, 2:], full[:, 2:])


def test_noise_has_a_strength_a_channel():
    G = tiny()
    ws = G.mapping(torch.randn(2, 16), torch.zeros(2, 0))
    torch.testing.assert_close(G.synthesis(ws), G.synthesis(ws, 'none'))   # strengths begin at 0
    with torch.no_grad():
        G.synthesis.layers[5].noise_strength[3] = 1.0
    assert torch.equal(G.synthesis(ws, 'const'), G.synthesis(ws, 'const'))
    assert not torch.allclose(G.synthesis(ws), G.synthesis(ws))
    change = {}
    G.synthesis.layers[5].register_forward_hook(lambda layer, inputs, maps: change.update(maps=maps))
    quiet = G.synthesis(ws, 'none'), change['maps']
    loud = G.synthesis(ws, 'const'), change['maps']
    changed = (loud[1] - quiet[1]).abs().amax(dim=(0, 2, 3)) > 1e-3
    assert changed.nonzero().flatten().tolist() == [3]
    with pytest.raises(ValueError, match="noise 'loud' is unknown"):
        G.synthesis(ws, 'loud')


@pytest.mark.parametrize('lod, layers_in_use', [(0.0, 6), (1.0, 4), (2.0, 2)])
def test_each_layer_takes_its_own_style(lod, layers_in_use):
    G = tiny()
    G.synthesis.lod.fill_(lod)
    ws, ws2 = G.mapping(torch.randn(2, 16), torch.zeros(2, 0))[:, None]
    images = G.synthesis(ws, 'none')
    for layer in range(G.num_ws):
        mixed = ws.clone()
        mixed[:, layer] = ws2[:, layer]
        assert torch.equal(G.synthesis(mixed, 'none'), images) == (layer >= layers_in_use)
    late = mix_styles(ws, ws2, torch.tensor([layers_in_use]))
    assert torch.equal(G.synthesis(late, 'none'), images)
