"""What would spoil a run on this machine, found before it starts."""
