"""A device in a federation: joins over MQTT, fetches what a plan needs, trains, and hands its update in."""
