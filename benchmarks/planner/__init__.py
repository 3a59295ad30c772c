"""How well token budgets are kept, beside a blend that counts samples, and what a plan costs."""

WINDOW = 1000  # steps over which budgets are to be kept
