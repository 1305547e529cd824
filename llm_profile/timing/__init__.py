"""Passes timed and attributed to layers, point by point, until each is known well enough."""
