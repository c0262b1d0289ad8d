"""Runs a policy for many askers; those that wait at the same time are answered together where the policy can."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from vla_ros.core.errors import PolicyError
from vla_ros.core.interfaces import Policy
from vla_ros.core.types import Inference, Observation

Answer = tuple[Inference, float]


class Batching:
    """Args:
    policy: used by one thread only, whoever asks.
    limit: observations that are given to `infer_batch` at once; a policy without that method gets them one after the other.
    wait_s: how long the first of a batch waits for others.
    alone: there is one asker at a time, so nobody is kept waiting when the policy runs in the event loop's own thread. On a busy
        machine that spares two changes of threads, each of which may cost a scheduler's time slice.
    """

    def __init__(self, policy: Policy, limit: int = 1, wait_s: float = 0.0, alone: bool = False) -> None:
        self._policy, self._limit, self._wait_s, self._alone = policy, limit, wait_s, alone
        self._waiting: asyncio.Queue[tuple[Observation, asyncio.Future[Answer]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "inference")

    async def infer(self, observation: Observation) -> Answer:
        """Returns the inference and the s that its batch took. Raises what the policy raised."""
        if self._alone:
            return self._timed(observation)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((observation, answer))
        return await answer

    async def reset(self) -> None:
        """Resets the policy, after the inference in progress."""
        if self._alone:
            self._policy.reset()
        else:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._policy.reset)

    async def run(self) -> None:
        """Answers until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            results = await loop.run_in_executor(self._thread, self._compute, [observation for observation, _ in batch])
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # cancelled: its client has gone
                    continue
                if isinstance(result, BaseException):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def close(self) -> None:
        """Ends the thread after the call in progress."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> list[tuple[Observation, asyncio.Future[Answer]]]:
        """Waits for one observation, then takes what else comes within `wait_s`, up to `limit`."""
        batch = [await self._waiting.get()]
        until_s = time.monotonic() + self._wait_s
        while len(batch) < self._limit:
            try:
                left_s = until_s - time.monotonic()
                item = self._waiting.get_nowait() if left_s <= 0 else await asyncio.wait_for(self._waiting.get(), left_s)
            except (asyncio.QueueEmpty, TimeoutError, asyncio.TimeoutError):  # the last two differ before Python 3.11
                break
            batch.append(item)
        return [item for item in batch if not item[1].done()]

    def _compute(self, observations: list[Observation]) -> list[Answer | Exception]:
        """In the inference thread. One observation that cannot be answered must not spoil the others."""
        together = getattr(self._policy, "infer_batch", None)
        if len(observations) > 1 and callable(together):
            began_s = time.perf_counter()
            try:
                inferences = together(observations)
                if len(inferences) == len(observations):
                    return [(inference, time.perf_counter() - began_s) for inference in inferences]
                wrong = PolicyError(f"infer_batch gave {len(inferences)} answers for {len(observations)} observations")
                return [wrong] * len(observations)
            except Exception:
                # each alone below, so that the one at fault is told so
                return [self._one(observation) for observation in observations]
        return [self._one(observation) for observation in observations]

    def _one(self, observation: Observation) -> Answer | Exception:
        try:
            return self._timed(observation)
        except Exception as error:
            return error

    def _timed(self, observation: Observation) -> Answer:
        began_s = time.perf_counter()
        try:
            return self._policy.infer(observation), time.perf_counter() - began_s
        except StopIteration as error:  # a future cannot carry it
            raise PolicyError(f"StopIteration: {error}") from error
