"""How a generator learns: networks from nothing, what they are taught, losses, checkpoints, validation."""
