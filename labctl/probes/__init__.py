"""What a running lab is watched with: sockets, state transitions, segments."""
