"""The command line, and starting programs here or on SLURM."""
