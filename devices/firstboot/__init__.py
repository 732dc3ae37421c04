"""A board's first boot: it creates the user, joins the network, installs the agent and starts it."""
