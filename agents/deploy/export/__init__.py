"""An agent as graphs that run without our training code."""
