"""Qwen-VLA: a vision-language backbone reads an embodiment prompt, a diffusion transformer makes the actions of every robot."""
