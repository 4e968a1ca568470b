"""The figures that runs of seconds make, one module each: `make(job)` runs, draws and compares.

job: settings, and where pictures, numbers and comparisons go. A new figure is one module here and
one line in scripts.studies.plot.
"""
