"""What a run writes down: its log, metrics, status, attempts, and the same for TensorBoard and W&B."""
