"""How good pictures are: features by a fixed network, and distances between the features of fakes and of reals."""
