"""`mirada search`: a supernet, a study of its paths, and the best of them as a recipe."""
