"""The generated world: ``python -m datasets.synthetic``."""
