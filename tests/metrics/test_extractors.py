"""These tests check which feature network serves, that its file is the right one, and what pictures it gets."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from peers_for_tests import FakeInception, Patches, write_onnx

from imago.trainer.config.sections import EvaluateConfig
from imago.trainer.metrics import weights
from imago.trainer.metrics.extractors import make_extractor
from imago.trainer.metrics.protocol import score_name

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGO_METRICS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def inception(tmp_path):
    path = tmp_path / weights.INCEPTION_FILE
    torch.jit.script(FakeInception()).save(path)
    return path


def make(name, **options):
    return make_extractor(EvaluateConfig(extractor=str(name), **options), CPU)


def picture(size=40, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size + 2, channels), dtype=np.uint8)


def test_the_clean_resizer_is_clean_fids(inception):
    extractor, theirs = make(inception), build_resizer('clean')
    ours = extractor.resize(picture())
    assert np.array_equal(ours, theirs(picture())) and ours.dtype == np.float32 and ours.shape == (299, 299, 3)
    grey = extractor.resize(picture(channels=1))
    assert np.array_equal(grey, theirs(picture(channels=1).repeat(3, axis=2)))
    floats = picture().astype(np.float32) + 0.25       # path lengths use pictures that are not rounded
    assert not np.array_equal(extractor.resize(floats), ours)
    assert extractor.resize(np.full((90, 90, 3), 200, np.uint8)) == pytest.approx(200)


def test_inception_by_path_and_its_two_resizers(inception):
    clean, legacy = make(inception), make(inception, resizer='legacy')
    x = picture(seed=1)
    features = [extractor([extractor.resize(x)], classes=True) for extractor in (clean, legacy)]
    assert features[0]['features'].shape == (1, 2048) and features[0]['classes'].sum() == pytest.approx(1)
    assert not np.allclose(features[0]['features'], features[1]['features'])
    names = [score_name(metric, clean) for metric in ('fid', 'kid', 'ppl')]
    assert names == ['fid', 'kid', 'ppl_inception'] and score_name('fid', legacy) == 'fid_legacy'
    # pictures of several sizes: the legacy resizer sits in the network
    assert legacy([legacy.resize(picture(size)) for size in (20, 30)])['features'].shape == (2, 2048)


def test_weights_are_fetched_once_and_checked_ever_after(inception, cache, monkeypatch):
    monkeypatch.setattr('cleanfid.downloads_helper.inception_url', inception.as_uri())
    fetched, fetch = [], weights._fetch
    monkeypatch.setattr(weights, '_fetch', lambda path: (fetched.append(path), fetch(path)))
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: weights.fetch_inception(cache), range(3)))
    assert len(fetched) == 1 and set(paths) == {cache / weights.INCEPTION_FILE}
    assert make('inception').name == make('auto').name == 'inception'
    with open(paths[0], 'r+b') as file:
        file.seek(100)
        file.write(b'damage')
    with pytest.raises(ValueError, match='it is damaged; remove both'):
        make('inception')


def test_offline_says_what_to_do(cache, monkeypatch):
    monkeypatch.setattr('cleanfid.downloads_helper.inception_url', 'http://127.0.0.1:9/none')
    with pytest.raises(ValueError, match='cannot be fetched .*copy inception-2015-12-05.pt there, give its path, or take'):
        make('inception')
    assert not (cache / weights.INCEPTION_FILE).exists()


def test_auto_falls_back_to_the_packaged_network_and_says_so(capsys):
    extractor = make('auto')
    assert 'scores are from effnet_lite0 and bear its name, they are no FID' in capsys.readouterr().err
    assert [score_name(metric, extractor) for metric in ('fid', 'kid', 'intra_fid', 'ppl')] == [
        'fd_effnet_lite0', 'kid_effnet_lite0', 'intra_fd_effnet_lite0', 'ppl_effnet_lite0']
    rows = extractor([extractor.resize(picture(seed=seed)) for seed in range(2)], classes=True)
    assert rows['features'].shape == (2, 1280) and rows['classes'].shape == (2, 1000)
    assert rows['classes'].sum(1) == pytest.approx(1) and rows['features'].std() > 0.1
    assert make('effnet_lite0').sha256 == extractor.sha256


def test_a_file_with_its_size_and_normalisation(tmp_path):
    torch.jit.script(Patches()).save(tmp_path / 'My-Net v2.pt')
    options = {'extractor_size': 8, 'extractor_mean': (0.5, 0.4, 0.3), 'extractor_std': (0.2, 0.3, 0.4)}
    extractor = make(tmp_path / 'My-Net v2.pt', **options)
    assert extractor.name == 'my_net_v2'
    resized = extractor.resize(picture())
    x = (torch.from_numpy(resized) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    features, logits = Patches()(x.permute(2, 0, 1)[None])
    rows = extractor([resized], classes=True)
    np.testing.assert_allclose(rows['features'], features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows['classes'], logits.softmax(1), rtol=1e-3, atol=1e-5)


def test_an_onnx_file(tmp_path):
    pytest.importorskip('onnxruntime')
    write_onnx(tmp_path / 'means.onnx')
    extractor = make(tmp_path / 'means.onnx', extractor_size=8, extractor_mean=(0, 0, 0), extractor_std=(1, 1, 1))
    resized = [extractor.resize(picture(seed=seed)) for seed in range(2)]
    np.testing.assert_allclose(extractor(resized)['features'], np.stack(resized).mean((1, 2)) / 255, rtol=1e-5)
    with pytest.raises(ValueError, match='means tells no classes, which the Inception Score needs'):
        make(tmp_path / 'means.onnx', extractor_size=8, metrics=('is',))


class Returns(torch.nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor):
        features = x.mean((2, 3))
        return [features] * 3 if self.kind == 'three' else [features * float('nan')]


class ADict(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return {'features': x.mean((2, 3))}


def test_files_that_return_something_else(tmp_path):
    for name, network, told in (('three', Returns('three'), 'three.pt does not work as .*: it must return features'),
                                ('dict', ADict(), 'dict.pt does not work as .*: it must return features'),
                                ('nan', Returns('nan'), 'nan returns features that are not finite')):
        torch.jit.script(network).save(tmp_path / f'{name}.pt')
        with pytest.raises(ValueError, match=told):
            make(tmp_path / f'{name}.pt')


@pytest.mark.parametrize('name', ['net.pt', 'net.onnx', weights.INCEPTION_FILE])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(ValueError, match='is not a regular file'):
        make(path)
    path.unlink()
    path.symlink_to('/dev/zero')
    with pytest.raises(ValueError, match='is not a regular file'):
        make(path)
    path.unlink()
    path.touch()
    with pytest.raises(ValueError, match='does not work as a feature network|cannot be read as ONNX'):
        make(path)


def test_wrong_files(tmp_path):
    torch.jit.script(Patches()).save(tmp_path / 'net.pt')
    with pytest.raises(ValueError, match='no such file; give inception, effnet_lite0, or a TorchScript or ONNX file'):
        make(tmp_path / 'none.pt')
    with pytest.raises(ValueError, match='has SHA-256 [0-9a-f]{64}, not 0{64}; get the file again'):
        make(tmp_path / 'net.pt', extractor_sha256='0' * 64)
    (tmp_path / 'text.pt').write_text('no network')
    with pytest.raises(ValueError, match='text.pt does not work as a feature network'):
        make(tmp_path / 'text.pt')
    (tmp_path / 'text.onnx').write_text('no network')
    with pytest.raises(ValueError, match='text.onnx cannot be read as ONNX'):
        make(tmp_path / 'text.onnx')
    torch.jit.script(torch.nn.Conv2d(3, 2, 3)).save(tmp_path / 'maps.pt')
    with pytest.raises(ValueError, match=r'maps returns features \[1, 2, 6, 6\] for 1 pictures, not \[1, d\]'):
        make(tmp_path / 'maps.pt', extractor_size=8)
