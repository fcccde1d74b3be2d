"""Faults that a broker has to hold, made on purpose on real processes."""
