"""How images are drawn: pipelines loaded, rows sampled, finished batches kept."""
