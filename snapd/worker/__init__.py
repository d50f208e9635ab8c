"""csnap-io, the I/O process."""
