"""The numbers of a comparison: metrics under image weights, crossed intervals, and what else the tables hold."""
