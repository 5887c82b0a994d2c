"""The numbers of a comparison: metrics under image weights, crossed intervals, and the verdict in words."""
