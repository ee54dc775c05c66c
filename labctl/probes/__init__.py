"""The means to watch a running lab: sockets, state transitions, segments."""
