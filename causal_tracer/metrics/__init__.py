"""What is read off the logits."""
