"""Loaders to compare, one file each; they run in a virtual environment of their own and are never dependencies."""
