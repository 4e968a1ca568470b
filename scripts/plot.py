"""Run and draw the figures of the Dyna family: `python scripts/plot.py figure=dyna_maze`."""

from worldmodel.entry import enter

if __name__ == "__main__":
    enter("scripts.studies.plot:plot_command", __file__, __doc__)
