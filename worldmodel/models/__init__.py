"""The worlds other than the RSSM, learned or known; each in its own file, imported only when used."""
