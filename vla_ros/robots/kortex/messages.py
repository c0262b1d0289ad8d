"""The Kortex messages that are used here, built for the protobuf runtime from a table of field numbers.

Numbers: Kinova's public API definition (Kinovarobotics/ros_kortex, kortex_driver/protos); Frame and Error: vendor's Python client.
Fields and messages that nobody here reads are left out; protobuf skips them.
"""

from __future__ import annotations

from vla_ros.core.errors import NotInstalled

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError, Message
except ModuleNotFoundError as error:
    raise NotInstalled("the kinova driver needs protobuf: pip install protobuf (or `make setup`)") from error

__all__ = ["DecodeError", "Message", "new", "parse"]

# message -> "name number type"; a type that is a message of this table, or *type for a repeated one. Angles in degrees, lengths in m.
_FIELDS: dict[str, tuple[str, ...]] = {
    "Header": ("frame_info 1 fixed32", "message_info 2 fixed32", "service_info 3 fixed32", "payload_info 4 fixed32"),
    "Frame": ("header 1 Header", "payload 2 bytes"),
    "Error": ("error_code 1 uint32", "error_sub_code 2 uint32", "error_sub_string 3 string"),
    "CreateSessionInfo": (
        "username 1 string",
        "session_inactivity_timeout 2 uint32",  # ms
        "password 3 string",
        "connection_inactivity_timeout 4 uint32",  # ms
    ),
    "ServoingModeInformation": ("servoing_mode 1 uint32",),
    "ArmStateInformation": ("active_state 1 uint32",),
    "JointSpeed": ("joint_identifier 1 uint32", "value 2 float", "duration 3 uint32"),
    "JointSpeeds": ("joint_speeds 1 *JointSpeed", "duration 2 uint32"),
    "Twist": ("linear_x 1 float", "linear_y 2 float", "linear_z 3 float", "angular_x 4 float", "angular_y 5 float", "angular_z 6 float"),
    # its duration (3, ms) is "not implemented yet" in Kinova's definition: a twist goes on like a joint speed
    "TwistCommand": ("reference_frame 1 uint32", "twist 2 Twist"),
    "Finger": ("finger_identifier 1 uint32", "value 2 float"),
    "Gripper": ("finger 1 *Finger",),
    "GripperCommand": ("mode 1 uint32", "gripper 2 Gripper", "duration 3 uint32"),
    "BaseFeedback": ("active_state 2 uint32", "fault_bank_a 31 fixed32", "fault_bank_b 32 fixed32"),
    "ActuatorFeedback": (
        "position 4 float",
        "velocity 5 float",
        "torque 6 float",
        "fault_bank_a 11 fixed32",
        "fault_bank_b 12 fixed32",
    ),
    "MotorFeedback": ("motor_id 1 fixed32", "position 4 float"),  # percent closed
    "GripperFeedback": ("fault_bank_a 3 fixed32", "motor 7 *MotorFeedback"),
    "InterconnectFeedback": ("gripper_feedback 18 GripperFeedback",),
    "Feedback": ("frame_id 1 fixed32", "base 2 BaseFeedback", "actuators 3 *ActuatorFeedback", "interconnect 4 InterconnectFeedback"),
}
_PACKAGE = "vla_ros.kortex"


def _file() -> descriptor_pb2.FileDescriptorProto:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vla_ros/kortex.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for entry in fields:
            field, number, kind = entry.split()
            repeated, kind = kind.startswith("*"), kind.lstrip("*")
            added = message.field.add(name=field, number=int(number), label=3 if repeated else 1)
            if kind in _FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    return file


def _classes() -> dict[str, type[Message]]:
    pool = descriptor_pool.DescriptorPool()  # not the process's own: another package may hold Kinova's
    pool.Add(_file())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


_CLASSES = _classes()


def new(name: str, **fields: object) -> Message:
    """Returns the message `name` of the table with these fields."""
    return _CLASSES[name](**fields)


def parse(name: str, data: bytes) -> Message:
    """Returns the message `name` read from `data`. Raises DecodeError."""
    return _CLASSES[name].FromString(data)
