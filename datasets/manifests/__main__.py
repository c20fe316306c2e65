"""``python -m datasets.manifests``."""

from datasets.manifests.run import main

main()
