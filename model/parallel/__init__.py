"""How a model is cut over tensor ranks, and what passes between them."""
