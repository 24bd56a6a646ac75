"""Checkpoints: written behind the steps, whole or not at all, verified when read."""
