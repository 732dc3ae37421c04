"""What an operator sees of a running server and may do to it: messages, views, the socket and its client."""
