"""What a training run needs of a cluster, checked on its own ranks before a run is submitted."""
