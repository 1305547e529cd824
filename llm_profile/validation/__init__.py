"""A table compared with the real model: the estimate, real steps, scaling, the report."""
