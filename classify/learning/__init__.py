"""How a classifier learns: models, losses, the training loop, where weights come from."""
