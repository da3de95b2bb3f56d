"""Renderings of the one result: text for terminals and pipes, JSON, HTML for notebooks. One file per rendering."""
