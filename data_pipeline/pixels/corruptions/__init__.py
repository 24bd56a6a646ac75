"""Images as bad cameras, weather and storage leave them, to measure how a network bears it."""
