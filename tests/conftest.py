"""Settings of all tests."""

import os

# Tests run side by side, and tiny models gain nothing from threads: those would wait for each other. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
