"""The worlds other than the RSSM, learned or known, each in a file of its own."""
