"""One TOML file for each kind of board; `devices.profile` reads them."""
