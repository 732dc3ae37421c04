"""The embedded MQTT 3.1.1 broker.

    codec, topics               bytes ↔ packets, what a topic may look like
    session, outbox             one connection's and one client's state
    router, retained            who receives a message
    hub                         what ties them together
    broker                      the shell: sockets, timers, a thread
    local                       the server's own end, without a socket
    auth                        who may connect, and touch which topics

All but the shell and the local link are without I/O and clock.
"""
