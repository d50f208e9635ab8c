"""csnapd, the control process: wiring, supervision, admin socket, metrics."""
