"""A site's ledger of privacy budgets: what was reserved and spent, signed and chained."""
