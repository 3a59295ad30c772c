"""What a recipe may say of tasks, apart from the code that makes examples: who checks a recipe waits for no numpy."""
