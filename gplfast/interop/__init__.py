"""Formats and drop-ins of other tools, one file per tool."""
