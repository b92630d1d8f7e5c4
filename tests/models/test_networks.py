"""Networks are built by role and name, and bad options are refused."""

import pytest

from imago.trainer.models import NETWORKS, build_network

OF_BOTH = {'c_dim': 0, 'resolution': [8, 8], 'img_channels': 3}


@pytest.mark.parametrize('role, own', [('generator', {'z_dim': 8, 'channels': 4}), ('discriminator', {'channels': 4})])
def test_options_that_no_constructor_takes_are_refused_by_name(role, own):
    assert type(build_network(role, 'dcgan', OF_BOTH | own)) is NETWORKS[role]['dcgan']
    with pytest.raises(ValueError, match=f"the {role} 'dcgan' takes no attention, w_dim$"):
        build_network(role, 'dcgan', OF_BOTH | own | {'w_dim': 8, 'attention': 8})


def test_options_of_several_generators_are_those_of_each():
    inside = OF_BOTH | {'z_dim': 8, 'channels': 4}
    G = build_network('generator', 'several', {'model': 'dcgan', 'count': 2, 'options': inside})
    assert [type(one) for one in G.generators] == [NETWORKS['generator']['dcgan']] * 2
    with pytest.raises(ValueError, match="the generator 'dcgan' takes no generators$"):
        build_network('generator', 'several', {'model': 'dcgan', 'count': 2, 'options': inside | {'generators': 2}})
    with pytest.raises(ValueError, match="the generator 'several' takes no z_dim$"):
        build_network('generator', 'several', {'model': 'dcgan', 'count': 2, 'options': inside, 'z_dim': 8})


@pytest.mark.parametrize('role, model', [('generator', 'dcgn'), ('discriminator', 'several')])
def test_an_unknown_network_names_the_known_ones(role, model):
    with pytest.raises(ValueError, match=f"there is no {role} '{model}'; take one of stylegan2, .*began"):
        build_network(role, model, {})
