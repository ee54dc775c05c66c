"""How results are shown. A report takes what a run left and touches no lab."""
