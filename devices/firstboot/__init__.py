"""What a board does at its first boot: create the user, join the network, install the agent and start it."""
