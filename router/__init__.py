"""Prompt -> posterior over domains -> decision which expert to ask. Pure: no network, no Ray."""
