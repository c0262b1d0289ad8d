"""RoboVLMs (arXiv:2412.14058): four ways to make a policy of any vision-language backbone."""
