"""Whatever comes from outside may be anything: it is taken, or refused in our own words.

A few hundred cases of each kind run with every test; `make fuzz` runs more than 10,000 with new
random seeds.
"""
