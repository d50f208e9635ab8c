"""Ways to make sure that a dead member writes no more."""
