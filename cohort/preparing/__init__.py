"""How a cohort is prepared, whatever dataset it comes from."""
