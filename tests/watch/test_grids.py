"""The grids of a run do not depend on how many ranks train it."""

from runs_for_tests import on_ranks, tiny_config, train_here

from imago.trainer.ranks import dist


def train_a_part(config):
    from imago.trainer.start import prepare
    from imago.trainer.train import train
    train(prepare(config))


def test_two_ranks_give_the_grids_of_one(shards, tmp_path):
    """The networks of the start are drawn alike on any number of ranks; later ones differ by the rounding of sums."""
    dist.init('cpu')
    data = {'path': str(shards), 'lanes': 12, 'workers': 0, 'conditional': True}
    train_here(tiny_config(shards, tmp_path / 'one', data=data))
    on_ranks(2, train_a_part, tiny_config(shards, tmp_path / 'two', data=data))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name / 'grids').iterdir()} for name in ('one', 'two'))
    assert one.keys() == two.keys() and len(one) == 4
    assert all(one[name] == two[name] for name in ('reals.png', 'fakes-00000.000.png'))
