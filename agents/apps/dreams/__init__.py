"""See the dreams of a trained run: strips, branching futures, honesty plots, one report."""
