"""Frames, handshake and limits for both ends of the agent connection and of the worker connection."""
