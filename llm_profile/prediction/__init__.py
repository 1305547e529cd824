"""Tables of GPUs that nobody here has: predicted from the tables of others, with intervals."""
