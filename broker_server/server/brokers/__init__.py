"""Configurations of brokers of others for one federation: who may connect, what each may touch, TLS and limits."""
