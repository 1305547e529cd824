"""What the two commands share: options, plans, and what is said on the terminal."""
