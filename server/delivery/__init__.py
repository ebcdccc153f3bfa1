"""The device's view: update checks, artifacts, events, application keys."""
