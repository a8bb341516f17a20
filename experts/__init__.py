"""Expert cards, their registry, and what runs engines and checks remote URLs."""
