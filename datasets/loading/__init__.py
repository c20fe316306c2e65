"""From a set to batches: plan, reader, loader."""
