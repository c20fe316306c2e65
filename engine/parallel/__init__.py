"""Processes, devices and DeepSpeed."""
