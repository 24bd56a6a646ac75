"""Journal: what rank 0 writes down of a run for ever, and what it shows; one place for each thing that happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import Signals

from engine.events import EventLog
from engine.meters import Meter
from engine.progress import Progress
from engine.results.evaluate import Scores
from engine.saving.saving import Settled
from engine.survival.bad_list import BadList
from engine.survival.pace import Straggler
from engine.survival.rollback import Window
from engine.world import World


class Journal:
    """The event log, which is the truth, the progress display, and the lists of images that could not be used."""

    def __init__(
        self, *, events: EventLog, progress: Progress, meter: Meter, bad_lists: Sequence[BadList] = ()
    ) -> None:
        self.meter = meter
        """What the values of a report come from."""
        self._events = events
        self._progress = progress
        self._bad_lists = bad_lists
        self._known_slow: set[int] = set()
        self._saved_step: int | None = None
        self._has_failed = False

    def begin(self, step: int, total: int) -> None:
        """The run goes on at `step` of `total`."""
        self._progress.begin(step, total)

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        self._progress.advance(step)

    def metrics(self, step: int, values: Mapping[str, float], *, images: int) -> None:
        """A point of each series, and the ranks that held the others up in this interval."""
        self._events.append("metrics", step=step, images=images, values=values)
        self._progress.report(step, values)
        self._stragglers(step, self.meter.stragglers)

    def evaluated(self, step: int, scores: Scores, *, raw_scores: Scores | None = None) -> None:
        """An evaluation of what would be released after `step`; and of the weights where that is their average."""
        raw_values = {} if raw_scores is None else raw_scores.values(raw=True)
        self._events.append("evaluation", step=step, values=scores.values() | raw_values)
        self._progress.note(f"step {step}: {scores}")
        if raw_scores is not None:
            self._progress.note(f"step {step}: {raw_scores}  (weights that are not averaged)")

    def settled(self, save: Settled) -> None:
        """A checkpoint stands, and would survive a power cut; or it could not be written, and training goes on."""
        if save.problem is None:
            self._saved_step = save.step
            self._events.append("checkpoint", step=save.step, path=str(save.path))
            self._events.flush()
        else:
            self._events.append("checkpoint_failed", step=save.step, path=str(save.path), error=save.problem)
            self._progress.note(
                f"no checkpoint after step {save.step}: {save.problem}; the one before stands"
            )

    def resumed(self, step: int) -> None:
        """The run goes on from the checkpoint after `step`; what was said of later steps is undone."""
        self._saved_step = step
        self._events.append("resumed", step=step)
        self._progress.note(f"resuming after step {step}")

    def rolled_back(self, step: int, to: int, window: Window, listed_in: Path) -> None:
        """The run goes on from `to`; what was said of later steps is undone."""
        fields = {"from": step, "to": to, "left_out": [window.first, window.last]}
        self._events.append("rolled_back", **fields)
        self._events.flush()
        self._progress.note(
            f"not finite for {len(window)} steps in a row, up to step {step}: back to step {to}, without the "
            f"images of these steps, which {listed_in} lists"
        )

    def ended(self, step: int, stopped_by: Signals | None) -> None:
        """The run is finished, or stopped by a signal and saved."""
        if stopped_by is None:
            self._events.append("finished", step=step)
        else:
            self._events.append("stopped", step=step, reason=stopped_by.name)
            saved = "saved" if self._saved_step == step else "not saved"
            self._progress.note(
                f"stopped by {stopped_by.name} after step {step}; {saved}, run it again to resume"
            )
        self._events.flush()

    def failed(self, reason: str, *, step: int) -> None:
        """The run ends by an error; said once, whatever follows from it, and from any thread."""
        if not self._has_failed:
            self._has_failed = True
            self._events.append("failed", error=reason, step=step)
            self._events.flush()

    @contextmanager
    def failures_on_record(self, step: Callable[[], int]) -> Iterator[None]:
        """Writes down how what is within failed, and takes down the display however it ends."""
        try:
            yield
        except KeyboardInterrupt:
            self._events.append("stopped", step=step(), reason="SIGINT twice, not saved")
            raise
        except BaseException as error:
            self.failed(f"{type(error).__name__}: {error}", step=step())
            raise
        finally:
            self._events.flush()
            self._progress.end()

    def list_bad_samples(self, world: World) -> None:
        """Lists the images that any rank could not use, and says how many; all ranks stop if there are too many."""
        for bad_list in self._bad_lists:
            if found := bad_list.agree(world):
                counts = Counter(sample.reason for sample in found)
                reasons = ", ".join(f"{count} {why}" for why, count in counts.items())
                self._progress.note(
                    f"{len(found)} images could not be used ({reasons}), {len(bad_list)} so far; "
                    f"listed in {bad_list.path}"
                )

    def _stragglers(self, step: int, stragglers: Sequence[Straggler]) -> None:
        """An event for each; a line only for those that were not slow in the interval before."""
        for straggler in stragglers:
            share = straggler.share
            self._events.append(
                "straggler",
                step=step,
                rank=share.rank,
                host=share.host,
                data_wait_s=share.data_wait_s,
                compute_s=share.compute_s,
                median_s=straggler.median_s,
            )
            if share.rank not in self._known_slow:
                self._progress.note(f"step {step}: {straggler}")
        self._known_slow = {straggler.share.rank for straggler in stragglers}
