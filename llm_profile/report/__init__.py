"""A table as one HTML page that people look at: what it shows, apart from how. Imports no torch."""
