"""The main job, shown on real parts: see run.py."""
