"""Points shared among the ranks of a torchrun: one process for each GPU, and the first rank writes the table."""
