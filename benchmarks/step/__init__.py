"""What a training step costs: the run's own and those of what one would run instead, on the same documents."""
