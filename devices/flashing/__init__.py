"""A system's image onto a card or into a file, with the files that its first boot reads."""
