"""Loading a model and its tokenizer: a hub id, a folder, a GGUF file, or a model that comes with pip."""
