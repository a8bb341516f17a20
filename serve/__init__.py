"""The public OpenAI-compatible endpoint, its admin API and the supervisor that runs them."""
