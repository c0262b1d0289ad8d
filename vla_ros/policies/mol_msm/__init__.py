"""MoL-MSM VLA: a frozen backbone, an action head that reads every layer of it, and a memory of chunks that worked in similar scenes."""
