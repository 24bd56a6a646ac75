"""`mirada doctor`: is everything there that a run needs on this cluster, before a run is submitted."""
