"""A wire with faults between libfranka and a simulated control box: `FaultyFrankaBox(address)`.

franky-sim raises no reflex and loses no packet, so what a real control box and its network do wrong happens here, on the bytes: the relay
forwards TCP 1337 and 1338 and their UDP streams (the client names its UDP port when it connects) and alters what passes. Message layouts:
franky_sim's `franka_robot_protocol` and `franka_robot_state`; order of the error bits: libfranka's `franka/errors.h`.

As a program: `python franka_wire.py ADDRESS BOX_ADDRESS` prints "ready" and answers lines "inject FAULT" and "clear" on its input.
"""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

_CONNECT, _MOVE, _STOP_MOVE, _RECOVER = 0, 1, 2, 10
_STARTED, _PREEMPTED, _SAFETY_PREEMPTED, _SAFETY_REJECTED, _REJECTED, _REFLEX, _EMERGENCY, _ABORTED = 1, 2, 3, 4, 5, 8, 9, 11
_MANUAL_RECOVERY = 3
_OWN_STOP = 0xFFFFFFFF  # command id of our own StopMove, that no client uses
_POSITION = 8 + 4 * 147  # q [7] float32 in a state datagram
_ERRORS, _REASON, _MODE = -87, -46, -5  # two times 41 flags, then the mode, counted from the datagram's end
_DELAY_S, _LOSS = 0.5, 0.6
_SILENCE_S = 0.25  # a Move without commands for so long is aborted; the real box takes 20 ms, but a busy machine is no real-time kernel


@dataclass(frozen=True)
class Latch:
    """What the box shows and answers from a fault on: its mode, the index of the error bit, the end of a running and of a new Move."""

    mode: int
    error: int | None
    ends_move: int
    rejects_move: int
    kept: bool = True  # until the client asks for recovery


_LATCHES = {
    "reflex": Latch(4, 7, _REFLEX, _REJECTED),
    "communication_violation": Latch(4, 25, _REFLEX, _REJECTED),
    "joint_limit": Latch(4, 0, _REFLEX, _REJECTED),
    "user_stop": Latch(5, None, _SAFETY_PREEMPTED, _SAFETY_REJECTED, kept=False),
    "estop": Latch(0, None, _EMERGENCY, _SAFETY_REJECTED, kept=False),
    "move_refused": Latch(1, None, _ABORTED, _REJECTED, kept=False),
}
_WIRE = ("link_cut", "silent", "slow", "packet_loss", "garbage", "nan_state", "hand_cut")
FAULTS = (*_WIRE, *_LATCHES)


class Relay:
    """One TCP port and the UDP stream that goes with it; `header` is the struct of (command, id, size)."""

    def __init__(self, wire: Wire, address: str, box_address: str, port: int, header: str) -> None:
        self._wire, self._address, self._box, self._header = wire, address, (box_address, port), struct.Struct(header)
        self._listener = socket.create_server((address, port))
        self._client = self._server = self._outer = self._inner = None
        self._client_udp = self._server_udp = None
        self._buffers = {}
        wire.watch(self._listener, self._accept)

    def cut(self) -> None:
        """Ends the session with a reset; a new client is let in unless the wire is cut."""
        if self._server is not None:
            self._wire.session_ends(self)
        for end in (self._client, self._server, self._outer, self._inner):
            if end is not None:
                self._wire.forget(end)
                if end in (self._client, self._server):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        self._client = self._server = self._outer = self._inner = self._client_udp = self._server_udp = None
        self._wire.watch(self._listener, self._accept)

    def send_to_box(self, message: bytes) -> None:
        if self._server is not None:
            self._server.sendall(message)

    def answer(self, command: int, number: int, status: int) -> None:
        """Sends the client a response in the box's place."""
        self._client.sendall(self._header.pack(command, number, self._header.size + 1) + bytes([status]))

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._wire.is_cut(self):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        try:
            server = socket.create_connection(self._box, timeout=1.0)
        except OSError:
            client.close()
            return
        self._wire.forget(self._listener)  # one client: the next one waits, as it does at the box
        self._client, self._server = client, server
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outer, self._inner = socket.socket(type=socket.SOCK_DGRAM), socket.socket(type=socket.SOCK_DGRAM)
        self._outer.bind((self._address, 0))
        self._inner.bind((server.getsockname()[0], 0))
        self._buffers = {client: b"", server: b""}
        self._wire.watch(client, lambda: self._stream(client, server, self._wire.request))
        self._wire.watch(server, lambda: self._stream(server, client, self._wire.response))
        self._wire.watch(self._inner, self._state)
        self._wire.watch(self._outer, self._command)

    def _stream(self, source: socket.socket, target: socket.socket, passes) -> None:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.cut()
            return
        self._buffers[source] += data
        for command, number, payload in self._messages(source):
            if command == _CONNECT and source is self._client:
                version, udp_port = struct.unpack_from("<HH", payload)
                self._client_udp = (self._client.getpeername()[0], udp_port)
                payload = struct.pack("<HH", version, self._inner.getsockname()[1]) + payload[4:]
            message = passes(self, command, number, payload)
            if message is not None:
                target.sendall(self._header.pack(command, number, self._header.size + len(message)) + message)

    def _messages(self, source: socket.socket) -> Iterator[tuple[int, int, bytes]]:
        while len(self._buffers[source]) >= self._header.size:
            command, number, size = self._header.unpack_from(self._buffers[source])
            if len(self._buffers[source]) < size:
                return
            payload = self._buffers[source][self._header.size : size]
            self._buffers[source] = self._buffers[source][size:]
            yield command, number, payload

    def _state(self) -> None:
        data, self._server_udp = self._inner.recvfrom(4096)
        self._wire.watch_commands(self)
        outer, client = self._outer, self._client_udp
        self._wire.carry(lambda: outer.sendto(self._wire.state(self, data), client))

    def _command(self) -> None:
        data, inner, server = self._outer.recv(4096), self._inner, self._server_udp
        self._wire.carry(lambda: (inner.sendto(data, server), self._wire.commanded()))


class Wire:
    """Both relays, the injected faults and what the box has latched."""

    def __init__(self, address: str, box_address: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._faults: set[str] = set()
        self._latch: Latch | None = None
        self._move = 0
        self._ends_move: int | None = None
        self._late: list = []
        self._order = 0
        self._random = random.Random(0)
        self._commanded_s = 0.0
        self._arm = Relay(self, address, box_address, 1337, "<III")
        self._hand = Relay(self, address, box_address, 1338, "<HII")

    def inject(self, fault: str) -> None:
        self._faults.add(fault)
        if fault == "link_cut":
            self._arm.cut()
        if fault in ("link_cut", "hand_cut"):
            self._hand.cut()
        if fault in _LATCHES:
            self._abort(_LATCHES[fault])

    def clear(self) -> None:
        self._faults.clear()
        if self._latch is not None and not self._latch.kept:
            self._latch = None

    def run(self) -> None:
        """Serves until the input ends."""
        self.watch(sys.stdin, self._order_from_stdin)
        print("ready", flush=True)
        while self._selector.get_map():
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            for key, _ in self._selector.select(wait_s):
                if self._selector.get_map().get(key.fd) is key:  # else an earlier event has cut it
                    key.data()
            while self._late and self._late[0][0] <= time.monotonic():
                self._deliver(heapq.heappop(self._late)[2])

    def _order_from_stdin(self) -> None:
        verb, _, fault = sys.stdin.readline().strip().partition(" ")
        if not verb:
            raise SystemExit
        if verb == "inject":
            self.inject(fault)
        elif verb == "clear":
            self.clear()
        print("done", flush=True)

    # What relays ask.

    def watch(self, end, call) -> None:
        if end not in self._selector.get_map():
            self._selector.register(end, selectors.EVENT_READ, call)

    def forget(self, end) -> None:
        if end in self._selector.get_map():
            self._selector.unregister(end)

    def is_cut(self, relay: Relay) -> bool:
        return "link_cut" in self._faults or ("hand_cut" in self._faults and relay is self._hand)

    def session_ends(self, relay: Relay) -> None:
        if relay is self._arm and self._move:
            self._abort(_LATCHES["communication_violation"])
            self._move, self._ends_move = 0, None

    def watch_commands(self, relay: Relay) -> None:
        """The box's own watchdog."""
        if relay is self._arm and self._move and time.monotonic() - self._commanded_s > _SILENCE_S:
            self._abort(_LATCHES["communication_violation"])

    def commanded(self) -> None:
        self._commanded_s = time.monotonic()

    def carry(self, send) -> None:
        """Sends a datagram now, later or never."""
        if "silent" in self._faults:
            return
        if "packet_loss" in self._faults and self._random.random() < _LOSS:
            if self._move:  # the box gives up after 20 missing commands
                self._abort(_LATCHES["communication_violation"])
            return
        if "slow" in self._faults:
            self._order += 1
            heapq.heappush(self._late, (time.monotonic() + _DELAY_S, self._order, send))
        else:
            self._deliver(send)

    def _deliver(self, send) -> None:
        try:
            send()
        except (OSError, TypeError):  # cut meanwhile, or not connected yet
            return

    def state(self, relay: Relay, data: bytes) -> bytes:
        """Returns the state datagram that the client gets."""
        if relay is not self._arm:
            return data
        if "garbage" in self._faults:
            return self._random.randbytes(self._random.randrange(1, len(data)))
        changed = bytearray(data)
        if "nan_state" in self._faults:
            struct.pack_into("<7f", changed, _POSITION, *[float("nan")] * 7)
        if self._latch is not None:
            changed[_MODE] = self._latch.mode
            if self._latch.error is not None:
                changed[_ERRORS + self._latch.error] = changed[_REASON + self._latch.error] = 1
        return bytes(changed)

    def request(self, relay: Relay, command: int, number: int, payload: bytes) -> bytes | None:
        """Returns what the box gets of a request; None: it was answered here."""
        if relay is not self._arm:
            return payload
        if command == _MOVE:
            if self._latch is not None:
                relay.answer(_MOVE, number, self._latch.rejects_move)
                return None
            self._move = number
            self.commanded()
        if command == _RECOVER and self._latch is not None:
            if self._faults:
                relay.answer(_RECOVER, number, _MANUAL_RECOVERY)
                return None
            self._latch = None
        return payload

    def response(self, relay: Relay, command: int, number: int, payload: bytes) -> bytes | None:
        """Returns what the client gets of a response."""
        if relay is not self._arm:
            return payload
        if (command, number) == (_STOP_MOVE, _OWN_STOP):
            return None
        if command == _MOVE and number == self._move and payload[0] != _STARTED:
            status, self._ends_move, self._move = self._ends_move, None, 0
            if status is not None:
                return bytes([status]) + payload[1:]
        return payload

    def _abort(self, latch: Latch) -> None:
        """Stops the box's motion and ends its Move with the fault's status."""
        self._latch = latch
        if self._move:
            self._ends_move = latch.ends_move
        self._arm.send_to_box(struct.pack("<III", _STOP_MOVE, _OWN_STOP, 12))


class FrankaWire:
    """The wire in a process of its own, from `address` to the control box at `box_address(address)`; it ends with this process."""

    FAULTS = FAULTS

    def __init__(self, address: str) -> None:
        program = [sys.executable, __file__, address, box_address(address)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready", "start")

    def inject(self, fault: str) -> None:
        if fault not in FAULTS:
            raise ValueError(f"no fault '{fault}'; valid: {', '.join(FAULTS)}")
        self._tell(f"inject {fault}")

    def clear(self) -> None:
        self._tell("clear")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _tell(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._expect("done", line)

    def _expect(self, answer: str, line: str) -> None:
        given = self._process.stdout.readline().strip()
        if given != answer:
            raise RuntimeError(f"the wire: {line}: {given or 'it has ended'}")


def box_address(address: str) -> str:
    """Where the box behind a wire listens: another loopback network, so that the wire has the ports of `address`."""
    first, second, rest = address.split(".", 2)
    return f"{first}.{int(second) + 1}.{rest}"


class FaultyFrankaBox:
    """A simulated control box behind a wire with faults. Context manager."""

    FAULTS = (*FAULTS, "box_killed")

    def __init__(self, address: str) -> None:
        from franka_box import FrankaBox

        self.address = address
        self._box = FrankaBox(box_address(address))
        self._wire: FrankaWire | None = None
        self._killed = False

    def __enter__(self) -> FaultyFrankaBox:
        self._box.start()
        self._wire = FrankaWire(self.address)
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def inject(self, fault: str) -> None:
        if fault == "box_killed":
            self._box.kill()
            self._killed = True
        else:
            self._wire.inject(fault)

    def clear(self) -> None:
        self._wire.clear()
        if self._killed:
            self._killed = False
            self._box.start()

    def speed(self) -> float:
        """The fastest joint (rad/s) as the box itself measures it, also while the wire is cut; 0 when it is killed."""
        return self._box.speed()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._box.kill()


if __name__ == "__main__":
    Wire(sys.argv[1], sys.argv[2]).run()
