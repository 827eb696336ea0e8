"""The records of a request, and the checks of their fields."""
