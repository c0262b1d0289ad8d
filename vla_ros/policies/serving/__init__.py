"""Serves any policy over openpi's protocol: `wire` is what a message looks like, `server` answers, `batching` runs the policy."""
