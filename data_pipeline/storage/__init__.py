"""Where shards lie: locations -> local files and bytes."""
