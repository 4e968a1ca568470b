"""The learned worlds other than the RSSM; each in its own file, imported only when it is used."""
