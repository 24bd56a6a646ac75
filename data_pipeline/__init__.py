"""Images to shards to stream to batches."""
