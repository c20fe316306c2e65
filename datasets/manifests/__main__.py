"""``python -m datasets.manifests``."""

from datasets.manifests.run import main

if __name__ == "__main__":
    main()
