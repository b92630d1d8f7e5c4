"""Packed pictures: the manifest, the order in which they are shown, where shards lie, and the stream of batches."""
