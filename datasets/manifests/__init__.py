"""Label forms of published sets, turned into manifests for ``datasets.prepare``: ``python -m datasets.manifests``."""
