"""What each rival trains on: the slots that all share, and what stands in them."""
