"""Artifacts that are published to a repository of the Hub, and one that was published, verified."""
