"""Schedules of everything that is not a quantized linear."""
