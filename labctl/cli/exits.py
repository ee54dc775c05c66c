"""The exit statuses of commands; the README says what each means."""

EXIT = {"pass": 0, "fail": 1, "unknown": 3, "skip": 3, "error": 4}
INTERRUPTED = 130
