"""Block devices: opening them, aligned memory, and asynchronous I/O."""
