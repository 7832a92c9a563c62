"""Runs and their curves in the database."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.live.curves import ThinnedCurve
from backend.live.run_memory import MAX_RUNS, RunMemory
from backend.models.run import RunModel, RunPointModel
from backend.upsert import upsert

KEPT_S = 400 * 86_400.0


class RunRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def latest(self, project_id: str, limit: int = MAX_RUNS) -> list[RunMemory]:
        """The runs that were heard last, with their curves."""
        rows = list(
            await self._session.scalars(
                select(RunModel)
                .where(RunModel.project_id == project_id)
                .order_by(RunModel.last_heard_s.desc())
                .limit(limit)
            )
        )
        return [await self._to_memory(row) for row in rows]

    async def save(self, project_id: str, runs: Iterable[RunMemory]) -> None:
        """Write what each run has unsaved; afterwards nothing is."""
        for run in runs:
            key = {"project_id": project_id, "trainer": run.trainer_id}
            row = {
                "trainer_name": run.trainer,
                "step": run.step,
                "metrics": json.dumps(run.metrics),
                "started_s": run.started_s,
                "last_heard_s": run.last_heard_s,
            }
            # A run that memory forgot and heard of again began when its row says.
            keep = () if run.began_again else ("started_s",)
            await upsert(self._session, RunModel, [{**key, "name": run.name, **row}], keep=keep)
            points = []
            for metric, curve in run.curves.items():
                rewritten, unsaved = curve.take_unsaved()
                if rewritten:
                    await self._session.execute(
                        delete(RunPointModel).where(
                            RunPointModel.project_id == project_id,
                            RunPointModel.trainer == run.trainer_id,
                            RunPointModel.run == run.name,
                            RunPointModel.metric == metric,
                        )
                    )
                points += [
                    {**key, "run": run.name, "metric": metric, "step": step, "value": value}
                    for step, value in unsaved.items()
                ]
            await upsert(self._session, RunPointModel, points)
            run.unsaved = False

    async def prune(self, now: float) -> None:
        """Forget runs of long ago, and curves without a run."""
        await self._session.execute(delete(RunModel).where(RunModel.last_heard_s < now - KEPT_S))
        runs = select(RunModel.name).where(
            RunModel.project_id == RunPointModel.project_id,
            RunModel.trainer == RunPointModel.trainer,
            RunModel.name == RunPointModel.run,
        )
        await self._session.execute(delete(RunPointModel).where(~runs.exists()))

    async def _to_memory(self, row: RunModel) -> RunMemory:
        run = RunMemory(
            trainer_id=row.trainer,
            trainer=row.trainer_name,
            name=row.name,
            started_s=row.started_s,
            last_heard_s=row.last_heard_s,
            step=row.step,
            metrics=json.loads(row.metrics),
            live=False,
        )
        points = await self._session.scalars(
            select(RunPointModel)
            .where(
                RunPointModel.project_id == row.project_id,
                RunPointModel.trainer == row.trainer,
                RunPointModel.run == row.name,
            )
            .order_by(RunPointModel.step)
        )
        by_metric: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for point in points:
            by_metric[point.metric].append((point.step, point.value))
        for metric, values in by_metric.items():
            run.curves[metric] = ThinnedCurve()
            run.curves[metric].restore(values)
        return run
