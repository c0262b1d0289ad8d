"""VITA-VLA: a small action model, the teacher, is distilled into a vision-language model."""
