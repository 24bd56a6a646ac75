"""Images -> shards: sources, the plan of a build, and the processes that write it."""
