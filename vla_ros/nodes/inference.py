"""Loads a policy and runs it in a thread of its own, one call at a time, so that the control timer never waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from vla_ros.core.errors import ConfigError, DataError, PolicyError, VlaError
from vla_ros.core.interfaces import Policy
from vla_ros.core.rig import Rig
from vla_ros.core.types import ActionChunk, Inference, Observation
from vla_ros.policies import load_policy

LONGEST_DELAY_S = 5.0
Answer = tuple[Inference, float]


def load_for_rig(checkpoint: str, rig: Rig) -> Policy:
    """Loads a policy for the robot and cameras of `rig`. Raises ConfigError: another attempt would not mend a wrong checkpoint."""
    try:
        policy = load_policy(checkpoint, rig.embodiment, rig.policy_options(checkpoint))
    except PolicyError as error:
        raise ConfigError(str(error)) from error
    missing = [name for name in policy.spec.cameras if name not in rig.cameras]
    if missing:
        raise ConfigError(f"{checkpoint} needs camera {', '.join(missing)}; rig {rig.name} has {', '.join(rig.cameras)}")
    return policy


def check_delay(delay_s: float) -> None:
    """Raises DataError for a delay that no inference may be given."""
    if not 0 <= delay_s <= LONGEST_DELAY_S:
        raise DataError(f"inference_delay_s {delay_s}, expected 0 .. {LONGEST_DELAY_S:g} s")


class InferenceWorker:
    """Give it work with `warm_up` or `infer`, then ask `take` until the answer is there.

    `delay_s` (s) is added to every inference that is given from then on, for a policy that is slower than it is; the warm-up is spared.

    Args:
        policy: used by the worker's thread only.
        report: is told what the policy raised when it is not a VlaError.
        nice: how far the thread gives way to the control timer and to other processes, 0 .. 19.
    """

    def __init__(self, policy: Policy, report: Callable[[BaseException], None] = lambda error: None, nice: int = 0) -> None:
        self.spec = policy.spec
        self._nice = nice
        self._policy, self._report = policy, report
        self.delay_s = 0.0
        self._work: SimpleQueue[Callable[[], Inference] | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer | VlaError] = SimpleQueue()
        self._busy = False
        # A daemon: a policy that never returns must not keep the process alive.
        threading.Thread(target=self._run, name="inference", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether an answer is still to be taken."""
        return self._busy

    def warm_up(self, observation: Observation) -> None:
        """Resets the policy and runs it once for nothing: the first inference is slower than all others and belongs in no figure."""

        def call() -> Inference:
            self._policy.reset()
            inference = self._policy.infer(observation)
            self._policy.reset()
            return inference

        self._put(call)

    def infer(self, observation: Observation) -> None:
        delay_s = self.delay_s

        def call() -> Inference:
            inference = self._policy.infer(observation)
            time.sleep(delay_s)
            return inference

        self._put(call)

    def take(self) -> Answer | None:
        """Returns the answer and its wall time in s, None while there is none. Raises what the policy raised, as a VlaError."""
        if self._answers.empty():
            return None
        self._busy = False
        answer = self._answers.get()
        if isinstance(answer, VlaError):
            raise answer
        return answer

    def idle(self) -> bool:
        """Drops an answer that nobody waits for any more; returns whether new work may be given."""
        if not self._answers.empty():
            self._answers.get()
            self._busy = False
        return not self._busy

    def close(self) -> None:
        """Ends the thread after the call in progress."""
        self._work.put(None)

    def _put(self, call: Callable[[], Inference]) -> None:
        if self._busy:
            raise PolicyError(f"{self.spec.name}: an inference is still running; one at a time")
        self._busy = True
        self._work.put(call)

    def _run(self) -> None:
        if self._nice:  # on Linux priorities belong to threads
            os.nice(self._nice)
        while (call := self._work.get()) is not None:
            start_s = time.perf_counter()
            try:
                inference = call()
                if not isinstance(inference, Inference) or not isinstance(inference.chunk, ActionChunk):
                    raise PolicyError(
                        f"{self.spec.name}: infer returned {type(inference).__name__}, expected Inference with an ActionChunk"
                    )
                self._answers.put((inference, time.perf_counter() - start_s))
            except VlaError as error:
                self._answers.put(error)
            except Exception as error:
                self._report(error)
                self._answers.put(PolicyError(f"{self.spec.name}: {type(error).__name__}: {error}"))
