"""What gc would delete, or has deleted, and why the rest stays; what a copy to another store was."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from behemoth_cli.out.table import Column, Listing, Page, Section
from behemoth_cli.views.figures import rate, seconds, since, size

if TYPE_CHECKING:
    from behemoth.app.clean_store import CleanPlan, Judged
    from behemoth.checkpoint.copy_plan import CopyPlan
    from behemoth.checkpoint.draining import Copied
    from behemoth.checkpoint.signposts import Write
    from behemoth.policy.retention import Retention


def clean_page(plan: CleanPlan, *, is_executed: bool, spared: Collection[Write], now_us: int) -> Page:
    """The policy, one row for each checkpoint, and what goes in all. `spared` was pinned after the plan was made."""
    num_dropped = len(set(plan.gc.commits).difference(spared))
    num_bytes = sum(info.size_bytes for info in plan.gc.objects_without(spared))
    return Page(
        kind="GcPlan",
        sections=(
            Section(lines=(f"keep {policy_text(plan.retention)}, and what is pinned",)),
            Section(listing=_listing(plan, spared, now_us)),
            Section(lines=(_total(plan, num_dropped, num_bytes, is_executed=is_executed),)),
        ),
        body={
            "isExecuted": is_executed,
            "retention": {
                "keepLast": plan.retention.keep_last,
                "everySteps": plan.retention.every_steps,
                "hourly": plan.retention.hourly,
                "daily": plan.retention.daily,
            },
            "checkpoints": [_item(one, spared) for one in plan.judged],
            "unusable": [{"file": one.key, "reason": one.error.message} for one in plan.unusable],
            "numDropped": num_dropped,
            "numUnfinishedWrites": plan.num_unfinished,
            "numLeftovers": len(plan.gc.leftovers),
            "numUploads": len(plan.gc.uploads),
            "numBytes": num_bytes,
        },
    )


def copy_page(copied: Copied, *, source: str, target: str, seconds_taken: float) -> Page:
    """`seconds_taken` counts all of it, what was there already read back too."""
    record = copied.record
    if copied.num_bytes + copied.found_bytes == 0:
        line = f"checkpoint/{record.step} is in {target} already"
    else:
        pace = rate((copied.num_bytes + copied.found_bytes) / seconds_taken)
        there = f", {size(copied.found_bytes)} of it there already" if copied.found_bytes else ""
        total = size(copied.num_bytes + copied.found_bytes)
        line = f"checkpoint/{record.step} copied to {target}: {total} in {seconds(seconds_taken)} ({pace}){there}"
    return Page(
        kind="CheckpointCopy",
        name=f"checkpoint/{record.step}",
        sections=(Section(lines=(line,)),),
        body={
            "step": record.step,
            "writeId": record.write_id,
            "source": source,
            "target": target,
            "copiedBytes": copied.num_bytes,
            "foundBytes": copied.found_bytes,
            "seconds": seconds_taken,
        },
    )


def copy_plan_page(plan: CopyPlan, *, source: str, target: str, least_seconds: float | None) -> Page:
    """What a copy would do. What the target holds counts only once it was read back, so it is told apart.
    `least_seconds` is how long that takes at the rate that was asked for, None for none."""
    step = plan.record.step
    if plan.is_there:
        line = f"checkpoint/{step} is in {target} already"
    else:
        held = f", {plan.found_objects} objects of {size(plan.found_bytes)} there already, to be read back"
        what = f"{plan.num_objects} objects of {size(plan.num_bytes)}{held if plan.found_objects else ''}"
        time = "" if least_seconds is None else f", {seconds(least_seconds)} at least"
        line = f"checkpoint/{step} would be copied to {target} from {source}: {what}{time}"
    return Page(
        kind="CheckpointCopyPlan",
        name=f"checkpoint/{step}",
        sections=(Section(lines=(line,)),),
        body={
            "step": step,
            "writeId": plan.record.write_id,
            "source": source,
            "target": target,
            "isThere": plan.is_there,
            "numObjects": plan.num_objects,
            "numBytes": plan.num_bytes,
            "foundObjects": plan.found_objects,
            "foundBytes": plan.found_bytes,
            "leastSeconds": None if plan.is_there else least_seconds,
        },
    )


def pin_page(writes: Sequence[tuple[int, str]], *, is_pinned: bool, is_new: bool, is_dry_run: bool) -> Page:
    """What became of the pins of one step, or would. Not `is_new`: it was so before."""
    step, verb = writes[0][0], "pinned" if is_pinned else "unpinned"
    how = f"was {verb} already" if not is_new else f"would be {verb}" if is_dry_run else verb
    return Page(
        kind="CheckpointPin",
        name=f"checkpoint/{step}",
        sections=(Section(lines=(f"checkpoint/{step} {how}",)),),
        body={
            "step": step,
            "writeIds": [write_id for _, write_id in writes],
            "isPinned": is_pinned,
            "isChanged": is_new and not is_dry_run,
            "isDryRun": is_dry_run,
        },
    )


def policy_text(retention: Retention) -> str:
    """A retention policy as a sentence."""
    parts = [f"the last {retention.keep_last}"]
    if retention.every_steps is not None:
        parts.append(f"every {retention.every_steps} steps")
    parts += [f"{number} {name}" for name in ("hourly", "daily") if (number := getattr(retention, name))]
    return ", ".join(parts)


def _listing(plan: CleanPlan, spared: Collection[Write], now_us: int) -> Listing:
    rows: list[tuple[str, ...]] = [
        (
            str(one.commit.step),
            one.commit.write_id,
            since(one.commit.committed_us, now_us),
            size(one.commit.size_bytes),
            "keep" if (reasons := _reasons(one, spared)) else "drop",
            ", ".join(reasons) or "-",
        )
        for one in plan.judged
    ]
    rows += [
        (str(one.step) if one.step is not None else "-", "-", "-", "-", "keep", f"unusable: {one.key}")
        for one in plan.unusable
    ]
    return Listing(
        kind="CheckpointList",
        columns=(
            Column(name="step", align="right"),
            Column(name="write"),
            Column(name="age", align="right"),
            Column(name="size", align="right"),
            Column(name="verdict"),
            Column(name="because"),
        ),
        rows=tuple(rows),
    )


def _reasons(one: Judged, spared: Collection[Write]) -> tuple[str, ...]:
    return one.reasons or (("pinned",) if (one.commit.step, one.commit.write_id) in spared else ())


def _total(plan: CleanPlan, num_dropped: int, num_bytes: int, *, is_executed: bool) -> str:
    verb = "deleted" if is_executed else "would delete"
    what = f"{num_dropped} of {len(plan.judged)} checkpoints"
    if plan.num_unfinished:
        writes = "write" if plan.num_unfinished == 1 else "writes"
        what += f" and what {plan.num_unfinished} unfinished {writes} left"
    if plan.gc.uploads:
        uploads = "upload" if len(plan.gc.uploads) == 1 else "uploads"
        what += f", and {'aborted' if is_executed else 'abort'} {len(plan.gc.uploads)} unfinished {uploads}"
    return f"{verb} {what}: {size(num_bytes)}"


def _item(one: Judged, spared: Collection[Write]) -> dict[str, object]:
    reasons = _reasons(one, spared)
    return {
        "step": one.commit.step,
        "writeId": one.commit.write_id,
        "committedUs": one.commit.committed_us,
        "sizeBytes": one.commit.size_bytes,
        "isKept": bool(reasons),
        "reasons": list(reasons),
    }
