"""What the layers of a model are: found, named, and marked in a profile."""
