"""What is asked for: the records of a request, and the checks of their values."""
