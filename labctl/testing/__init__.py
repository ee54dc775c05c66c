"""Labs for people's own tests: `labctl.Lab` (lab.py), whose methods are the verbs (verbs.py)."""
