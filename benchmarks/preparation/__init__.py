"""What a token costs from text to disk, beside others' ways."""
