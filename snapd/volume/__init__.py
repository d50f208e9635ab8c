"""A volume: an origin and its snapshots; routing and copy-out."""
