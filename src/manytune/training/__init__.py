"""The training loop and what surrounds it: batches, evaluation, checkpoints, snapshots."""
