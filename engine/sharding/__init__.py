"""ZeRO: our config -> a DeepSpeed engine, its optimizer, its average, and its state at any number of ranks."""
