"""What a run is, before it runs."""
