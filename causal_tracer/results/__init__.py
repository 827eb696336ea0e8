"""Maps as plain data: read, described, compared, saved. Knows no engine."""
