"""Runs the episodes of `vla eval` one after the other and keeps the results on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vla_ros.cli import tally
from vla_ros.cli.record import Outcome, write_json
from vla_ros.cli.target_shift import TargetShift

if TYPE_CHECKING:
    from rich.console import Console

    from vla_ros.cli.episodes import EpisodePlan
    from vla_ros.cli.rollout_client import RolloutClient

_EPISODE_FIGURES = ("chunks", *tally.FIGURES, "holds", "rejected", "frames")


class Evaluation:
    """The episodes of one or more executors, with one or more delays of inference, on the same seeds.

    Args:
        console: for the progress bar and one line per episode.
        settings: rig, policy, seed, ...; kept with the results.
        executors: names with options; "" is the rig's own.
        path: of the JSON, rewritten after each episode.
        folder: for the plots, and the Markdown table of several executors or delays.
        delays_ms: added to every inference; every executor meets every delay.
    """

    def __init__(
        self, console: Console, settings: Mapping[str, object], executors: Sequence[str], path: Path, folder: Path,
        delays_ms: Sequence[float] = (0.0,),
    ) -> None:  # fmt: skip
        self._console, self._path, self._folder = console, path, folder
        self._settings = {**settings, "delays_ms": list(delays_ms)}
        self._variants = [(executor, delay_ms) for executor in executors for delay_ms in delays_ms]
        self._delayed = len(delays_ms) > 1 or delays_ms[0] > 0
        self._episodes: list[dict[str, object]] = []

    def run(self, client: RolloutClient, rig: str, plan: Sequence[EpisodePlan]) -> None:
        """Runs all episodes; a failed one does not end the evaluation, a dead rig does (DeviceError)."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            job = bar.add_task(rig, total=len(plan) * len(self._variants))
            for executor, delay_ms in self._variants:
                for episode in plan:
                    self._episodes.append(self._run_one(client, episode, executor, delay_ms))
                    write_json(self._path, self.results())
                    bar.update(job, advance=1, description=f"{self.results()['success_rate']:.0%} success")
                    self._console.print(_line(self._episodes[-1]), highlight=False, soft_wrap=True)

    def results(self) -> dict[str, object]:
        """Returns what the JSON holds."""
        results = {"settings": dict(self._settings), **tally.tally(self._episodes), "episodes": self._episodes}
        if self._settings["instruction_set"] != "canonical":
            results["phrasings"] = tally.by(self._episodes, "phrasing")
            results["phrasings_mean_success_rate"] = tally.mean_rate(results["phrasings"])
        results["tasks"] = tally.by(self._episodes, "task")
        if len(self._variants) > 1:
            results["executors"] = self._sweep()
        return results

    def finish(self) -> None:
        """Writes the plots and the table, and prints the result; also of an evaluation that was broken off."""
        if not self._episodes:
            return
        from vla_ros.cli.delay_plot import write_delay_plot
        from vla_ros.cli.evaluation_plot import write_plot

        results = self.results()
        plot = self._folder / "eval.png"
        write_plot(self._episodes, results, plot)
        files = [self._path, plot]
        if self._delayed:
            files.append(self._folder / "delays.png")
            write_delay_plot(self._episodes, files[-1])
        if len(self._variants) > 1:
            table = self._folder / "executors.md"
            table.write_text(tally.markdown(results["executors"]), encoding="utf-8")
            files.append(table)
            self._console.print(table.read_text(encoding="utf-8"), highlight=False, soft_wrap=True)
        for phrasing, rates in results.get("phrasings", {}).items():
            self._console.print(f"  {rates['success_rate']:4.0%} of {rates['episodes']:<3d} {phrasing}", highlight=False, soft_wrap=True)
        low, high = results["success_interval_95"]
        self._console.print(
            f"success {results['success_rate']:.1%} (95 %: {low:.1%} to {high:.1%}), wrong object {results['wrong_object_rate']:.1%}, "
            f"{len(self._episodes)} episodes{_steps_done(results)}", highlight=False, soft_wrap=True,
        )  # fmt: skip
        for path in files:
            self._console.print(f"  {path}", highlight=False, soft_wrap=True)

    def _run_one(self, client: RolloutClient, episode: EpisodePlan, executor: str, delay_ms: float) -> dict[str, object]:
        client.recover_robots()
        client.reset_scene(episode.seed, episode.task)
        distance_m = float(self._settings["move_target_m"])
        shift = TargetShift(distance_m, episode.seed, client.move_object, lambda: client.tcp_height_m, lambda: client.feedback.elapsed_s)
        outcome = client.execute(
            episode.instruction, float(self._settings["time_limit_s"]) * episode.steps, executor, task=episode.task, seed=episode.seed,
            on_turn=shift.turn if distance_m else lambda: None, inference_delay_s=delay_ms * 1e-3,
        )  # fmt: skip
        if outcome.outcome == "canceled":
            raise KeyboardInterrupt
        asked = {"asked_executor": executor, "inference_delay_ms": delay_ms}
        return asked | _as_episode(outcome, episode, client.task_detail, shift if distance_m else None)

    def _sweep(self) -> list[dict[str, object]]:
        groups = tally.variants(self._episodes)
        return [tally.sweep_row(name or "the rig's", group, ms if self._delayed else None) for (name, ms), group in groups.items()]


def _as_episode(outcome: Outcome, episode: EpisodePlan, detail: str, shift: TargetShift | None) -> dict[str, object]:
    head = {
        "seed": episode.seed, "instruction": episode.instruction, "success": outcome.success, "wrong_object": outcome.wrong_object,
        "duration_s": round(outcome.duration_s, 3), "outcome": outcome.outcome, "reason": outcome.reason, "detail": detail,
        "task": episode.task, "phrasing": episode.phrasing, "executor": outcome.executor,
        "steps_done": outcome.steps_done, "steps": outcome.steps,
    }  # fmt: skip
    if shift is not None:
        head["moved_m"] = shift.moved_m and [round(value, 4) for value in shift.moved_m]
        head["moved_at_s"] = shift.moved_at_s and round(shift.moved_at_s, 2)
        head["not_moved_because"] = "" if shift.moved_m else shift.message
    return head | {name: outcome.statistics[name] for name in _EPISODE_FIGURES if name in outcome.statistics}


def _steps_done(results: Mapping[str, object]) -> str:
    share = results["steps_done_share"]
    return "" if share is None else f", {share:.1%} of the steps done"


def _line(episode: Mapping[str, object]) -> str:
    word = "[green]success[/]" if episode["success"] else f"[red]{episode['outcome']}[/]"
    wrong = "  [red]wrong object[/]" if episode["wrong_object"] else ""
    told = "reason" if episode["outcome"] == "aborted" else "detail"
    why = "" if episode["success"] else f"  ({episode[told] or episode['reason']})"
    name = f"  {episode['executor']}" if episode["executor"] else ""
    steps = f"  {episode['steps_done']} of {episode['steps']} steps" if episode["steps"] > 1 else ""
    return f"seed {episode['seed']}  {word}  {episode['duration_s']:5.1f} s{steps}{wrong}{name}  {episode['instruction']}{why}"
