"""Prove what is claimed: `python scripts/reproduce.py list`, `quick`, or the name of a claim."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("scripts.studies.reproduce.cli:reproduce_command", __file__, __doc__)
