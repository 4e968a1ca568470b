"""Collect, evaluate and train, for every agent that keeps the Agent protocol."""
