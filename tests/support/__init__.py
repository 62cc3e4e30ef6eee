"""What several tests, or the programs beside them, share."""
