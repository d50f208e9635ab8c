"""Exception stores: where a snapshot keeps what the origin no longer has."""
