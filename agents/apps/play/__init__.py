"""Step into the dream of a trained world model: `scripts/play.py`."""
