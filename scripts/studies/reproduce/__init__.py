"""Claims and the commands that prove them: `scripts/reproduce.py`.

A new claim is one entry in table.py; what an entry holds stands in claim.py.
"""
