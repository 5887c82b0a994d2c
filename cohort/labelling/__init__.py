"""From radiology reports to labels: read, understood by rules or by a language model, checked against human labels."""
