"""The command line of all four packages: how a command ends, values that people write, and settings."""
