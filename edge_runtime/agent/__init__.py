"""A device in a federation: joins over MQTT, downloads a plan's files, trains, and sends its update."""
