"""Measure on a GPU what is claimed: `make gpu-report`, or `python scripts/gpu_report.py`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("scripts.studies.gpu_report:gpu_report_command", __file__, __doc__)
