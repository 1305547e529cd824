"""Two tables compared, row by row."""
