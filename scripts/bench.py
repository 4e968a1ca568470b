"""Measure, one JSON line for each figure: `python scripts/bench.py what=dyna`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("scripts.studies.bench:bench_command", __file__, __doc__)
