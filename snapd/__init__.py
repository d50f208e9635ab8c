"""csnap: cluster-wide copy-on-write snapshots of a shared LUN."""

__version__ = "0.2.0"
