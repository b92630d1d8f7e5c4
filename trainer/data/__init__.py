"""This package reads packed pictures: manifests, shards from anywhere, the order of pictures, and the stream of batches."""
