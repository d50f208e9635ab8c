"""The NBD protocol: bytes in, requests out."""
