"""What `benchmarks.scale` measures, a part of a run in each file."""
