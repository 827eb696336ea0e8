"""What a model is: its parts, found and checked, and how it is run."""
