"""The kernel's on-disk format: bytes <-> values, no I/O."""
