"""vla_ros: vision-language-action policies on real robots, over ROS 2."""
