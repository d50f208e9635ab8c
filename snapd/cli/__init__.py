"""The command csnap."""
