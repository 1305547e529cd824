"""A table held against the real model: the estimate, real steps, scaling, the report."""
