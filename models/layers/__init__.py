"""Parts that model families share: blocks, patches, positions, masks."""
