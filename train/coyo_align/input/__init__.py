"""Tar shards to rows of pixels and captions: an index, decoding processes, a cache, a stream.

Read ``data`` first for what there is of a set, then ``stream`` for how batches come out of it.
"""
