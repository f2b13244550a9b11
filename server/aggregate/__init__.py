"""How a round's updates become the next adapter."""
