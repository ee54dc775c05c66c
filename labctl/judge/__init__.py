"""From a record to verdicts, accounts and reasons. It touches no lab."""
