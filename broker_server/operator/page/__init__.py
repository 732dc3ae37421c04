"""The live page: a server's views in a browser, with the operator's acts."""
