"""Running a pipeline: a job per stage, each waiting for those it builds on; or here, one stage after another."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

import yaml

from configs.base import ConfigError
from launch.local import run_ranks
from launch.many.chain import Chain, Step
from launch.many.group import Member, record_whole, share_snapshot, submit_member
from launch.many.pipeline import Stage
from launch.many.program import MODULES
from launch.submission.here import run_here
from launch.submission.job import Job
from launch.submission.record import launch_folder
from launch.submission.slurm import script_text
from launch.submission.snapshot import Snapshot, read_source


def describe_pipeline(chain: Chain) -> str:
    """The stages and the scripts that would go to sbatch; writes nothing."""
    lines, scripts = [], []
    for step in chain.steps:
        stage, waits = step.stage, ", ".join(step.stage.after) or "nothing"
        state = "finished" if step.is_done else f"after {waits}"
        lines.append(f"  {stage.name}: {stage.program}, {state}, in {stage.folder}\n")
        if step.cluster.kind == "slurm" and not step.is_done:
            folder, source = launch_folder(stage.folder), read_source()
            waited = ":".join(
                _waited_for(step, chain.steps)
            )  # the names, in place of job ids that are not known yet
            script = script_text(
                [Job(run_folder=stage.folder)],
                step.cluster,
                folder,
                snapshot=launch_folder(chain.out) / f"snapshot-{source.commit}-{_digest(chain)}",
                name=_job_name(chain, stage),
                dependency=f"afterok:{waited}" if waited else None,
            )
            scripts.append(f"\n# {stage.name}\n{script}")
    return f"{len(chain.steps)} stages in {chain.out}\n" + "".join([*lines, *scripts])


def submit_pipeline(chain: Chain) -> dict[str, str]:
    """Submits the stages that are not finished, returns their job ids; if SLURM refuses one, none is left queued."""
    recipes = {f"{step.stage.name}.yaml": step.settings for step in chain.steps if step.checked is not None}
    snapshot = share_snapshot(chain.out, recipes, digest=_digest(chain))
    job_ids: dict[str, str] = {}
    for step in chain.steps:
        if step.is_done:
            continue
        waited = [job_ids[name] for name in _waited_for(step, chain.steps)]
        try:
            submission = submit_member(
                _member(step, snapshot),
                snapshot,
                parent=chain.out,
                name=_job_name(chain, step.stage),
                dependency=f"afterok:{':'.join(waited)}" if waited else None,
            )
        except ConfigError as refusal:
            if job_ids:
                subprocess.run(["scancel", *job_ids.values()], check=False)
            raise ConfigError(f"stage {step.stage.name}: {refusal}; no stage is left in the queue") from None
        job_ids[step.stage.name] = submission.job_ids[0]
    record_whole(_whole(chain), snapshot, kind="pipeline", job_ids=list(job_ids.values()))
    return job_ids


def run_pipeline_here(chain: Chain, *, again: str) -> int:
    """Runs the stages that are not finished one after another on this machine, up to the first that fails."""
    for number, step in enumerate(chain.steps, start=1):
        sys.stdout.write(f"[{number}/{len(chain.steps)}] {step.stage.name}: {step.stage.folder}\n")
        sys.stdout.flush()
        code = 0 if step.is_done else _run_here(step, again)
        if code:
            return code
    return 0


def _run_here(step: Step, again: str) -> int:
    if step.checked is not None:
        return run_here(step.checked)
    step.stage.folder.mkdir(parents=True, exist_ok=True)
    module, arguments = MODULES[step.stage.program], list(step.stage.arguments)
    return run_ranks(module, arguments, num_ranks=1, out=step.stage.folder, again=again)


def _waited_for(step: Step, steps: Sequence[Step]) -> list[str]:
    """Names of the stages whose jobs it waits for: those before it that are not finished already."""
    done = {other.stage.name for other in steps if other.is_done}
    return [name for name in step.stage.after if name not in done]


def _member(step: Step, snapshot: Snapshot) -> Member:
    stage = step.stage
    if step.checked is None:
        command: tuple[str, ...] = (MODULES[stage.program], *stage.arguments)
    else:
        recipe = snapshot.recipe(f"{stage.name}.yaml")
        command = (stage.program, str(recipe), "--out", str(stage.folder))
    return Member(
        label=stage.name,
        program=stage.program,
        command=command,
        recipe=stage.recipe or "",
        overrides=stage.arguments,
        cluster=step.cluster,
        run_folder=stage.folder,
        node_counts=() if step.checked is None else step.checked.node_counts,
    )


def _whole(chain: Chain) -> Member:
    return Member(
        label=chain.name,
        program="pipeline",
        command=(),
        recipe=chain.file,
        overrides=(),
        cluster=chain.cluster,
        run_folder=chain.out,
    )


def _job_name(chain: Chain, stage: Stage) -> str:
    return f"{chain.name}-{stage.name}"


def _digest(chain: Chain) -> str:
    content: Mapping[str, str] = {step.stage.name: step.settings for step in chain.steps}
    return hashlib.sha256(yaml.safe_dump(dict(content)).encode()).hexdigest()[:12]
