"""A thin client of Kinova's Kortex protocol: framing, the messages an arm needs, sessions, and the link that a driver uses."""
