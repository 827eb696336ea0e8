"""Results as plain data: reading, describing, comparing and saving them. Imports no engine."""
