"""Finding the parts of a model (blocks, attention, MLP, heads), checking them, and running the model with edits."""
