"""The protocol as a model that SPIN checks. See README.md."""
