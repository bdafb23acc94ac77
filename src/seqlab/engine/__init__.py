"""What carries a run: construction, steps, checkpoints, resume, signals, folders, processes.
Nobody needs to read this to train a network of their own."""
