"""What a pretraining run is."""

from __future__ import annotations

from configs.training import RunConfig


class PretrainConfig(RunConfig):
    """Supervised pretraining of a timm model on labelled shards."""
