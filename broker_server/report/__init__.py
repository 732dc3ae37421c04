"""The report of a federation: its content (JSON), its page (HTML), and its energy."""
