"""The privileged helper: the few system calls of fencing that the daemon may not do itself."""
