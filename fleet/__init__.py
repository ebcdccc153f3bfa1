"""Simulated fleets: thousands of installations that run the SDK's own code against a real server.

Replaced are the disk (states, events and files live in memory) and what an app would do with a
model. Requests, signatures, decisions, states and events are the SDK's and the server's own.
"""
