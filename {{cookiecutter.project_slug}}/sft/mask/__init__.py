"""Conversations to `input_ids` and `labels`."""
