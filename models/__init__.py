"""Tensors to tensors: networks, attention and where they look."""
