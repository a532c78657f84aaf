"""Reporting: tables made from records."""
