"""From raw videos to shards: ``python -m datasets.prepare``."""

from datasets.prepare.run import prepare

__all__ = ["prepare"]
