"""From a name to a model: the hub, config.json, checkpoints, and a model built with few decoder blocks."""
