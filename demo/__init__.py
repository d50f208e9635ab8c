"""The main job, shown on real parts: ``python -m demo``; the story is in story.py."""
