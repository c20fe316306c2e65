"""Clips in, rows of one file out, part by part, over any number of processes: what embedding and predicting share."""
