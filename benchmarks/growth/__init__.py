"""How time and memory of a step grow, and whether a model of its cost foretells them."""
