"""Metrics tell how good pictures are, by distances between a fixed network's features of fakes and of reals."""
