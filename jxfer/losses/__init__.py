"""Losses: pure functions of logits and labels."""
