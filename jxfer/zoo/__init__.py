"""The Model Zoo: cards, weight maps, strict merging, storage."""
