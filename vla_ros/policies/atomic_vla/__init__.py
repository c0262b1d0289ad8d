"""AtomicVLA: a backbone thinks in words which atomic skill is due, and of an action expert only that skill's part runs."""
