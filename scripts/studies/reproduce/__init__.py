"""Claims and the commands that prove them: `scripts/reproduce.py`.

A new claim is one entry in table.py; what an entry holds stands in claim.py. Published figures lie
in docs/results, and docs/RESULTS.md is made from them.
"""
