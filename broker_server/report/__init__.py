"""The report of a federation: what it says (JSON), how it looks (HTML), and its energy."""
