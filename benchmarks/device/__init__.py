"""Measurements of the device runtime, a module for each section."""
