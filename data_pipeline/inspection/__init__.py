"""What shards hold, and what is wrong with them."""
