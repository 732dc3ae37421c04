"""The running server: settings, state folder, loop, transfers and progress."""
