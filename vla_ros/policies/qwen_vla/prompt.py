"""What Qwen-VLA is told: the embodiment prompt of the paper's section 2.3, and which camera each picture is from."""

from __future__ import annotations

from vla_ros.core.errors import PolicyError
from vla_ros.policies.layout import Layout
from vla_ros.policies.navigation import NavigationLayout

_TAGS = {"front": "ego"}  # the paper's name for the view that is on no wrist


def camera_tag(camera: str) -> str:
    """The paper's name of a camera: `front` -> ego, `left_wrist` -> cam_left_wrist."""
    return _TAGS.get(camera, f"cam_{camera}")


def tagged(camera: str, image: str = "<image>") -> str:
    """A picture's place in the text, between the tokens that name its camera."""
    tag = camera_tag(camera)
    return f"<|{tag}_start|>{image}<|{tag}_end|>"


def embodiment_prompt(layout: Layout, instruction: str, horizon: int, dt_s: float) -> str:
    """The template of the paper, word by word, for one robot.

    Args:
        layout: its name is the robot's tag, its arms are counted.
        instruction: what to do.
        horizon, dt_s: rows of the chunk and the time between them.

    Raises:
        PolicyError: horizon or dt_s is not above 0.
    """
    if horizon < 1 or not dt_s > 0:
        raise PolicyError(f"prompt of {layout.embodiment}: horizon {horizon}, dt_s {dt_s}, expected > 0")
    body, what = _body(layout)
    return (
        f"The robot is {layout.embodiment.replace('_', ' ')} with {body}. The control frequency is {1 / dt_s:g} Hz. "
        f"Please predict the next {horizon} {what} to execute the following task: {instruction.strip().rstrip('.')}."
    )


def _body(layout: Layout) -> tuple[str, str]:
    if isinstance(layout, NavigationLayout):
        return "mobile base", "waypoints (dx, dy, dtheta)"
    return ("single arm" if len(layout.arms) == 1 else "dual arms"), "control actions"
