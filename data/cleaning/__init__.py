"""What may be done to corpora before they are trained on, all of it off until the recipe asks: see config.py."""
