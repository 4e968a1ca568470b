"""Measure on a GPU what is claimed for one, within 8 minutes: `make gpu-report`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("scripts.studies.gpu_report:gpu_report_command", __file__, __doc__)
