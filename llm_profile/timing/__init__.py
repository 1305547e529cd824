"""Timing: passes of each point are timed and attributed to rows, until the point's mean is known precisely enough."""
