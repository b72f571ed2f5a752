"""Labelled images: from TFDS builders and folders to batches of uint8 pixels."""
