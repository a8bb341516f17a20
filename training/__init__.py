"""Labelled prompts -> router artefact."""
