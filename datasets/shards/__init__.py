"""A set on the disk: tars, manifest (``index.json``), table, and where they are kept."""
