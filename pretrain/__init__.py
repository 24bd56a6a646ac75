"""ZeRO-sharded pretraining from a stream."""
