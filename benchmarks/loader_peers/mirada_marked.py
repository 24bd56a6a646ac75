"""Ours again, from JPEGs with restart markers: the same loader."""

from benchmarks.loader_peers.mirada import batches

__all__ = ["batches"]
