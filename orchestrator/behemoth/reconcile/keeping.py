"""The commits of a run: which there are, which were found to be bad, and which retention no longer wants.

What is known of them is the store's own word, once per term, and what this term has committed and deleted since.
Neighbours: `behemoth.policy.retention` chooses, `saving` makes new ones.
"""

from __future__ import annotations

from msgspec.structs import replace

from behemoth.base.ids import WriteId
from behemoth.policy.retention import MIN_KEPT, Dated, Retention, expired
from behemoth.state.effect import CommitRef, Delete, Effect, Reject
from behemoth.state.evidence import CommitsFound, Deleted, Pinned
from behemoth.state.observation import Observation


def on_found(obs: Observation, told: CommitsFound) -> Observation:
    """The store's own word, once per term; what this term committed before it was listed is added."""
    if obs.are_commits_known:
        return obs
    by_step = {commit.step: commit for commit in (*told.commits, *obs.commits_of_term)}
    intact = (by_step[step] for step in sorted(by_step) if by_step[step].write_id not in obs.rejected)
    obs = replace(obs, commits=tuple(intact), are_commits_known=True, commits_of_term=())
    known = (*(commit.write_id for commit in told.commits), *told.others)
    num_writes = max([obs.num_writes, *map(_number_of, known)])
    best_step = max([obs.best_step, *(commit.step for commit in obs.commits[-1:])])
    return _with_expired(replace(obs, num_writes=num_writes, best_step=best_step))


def _number_of(write_id: WriteId) -> int:
    """The counter in `a<attempt>-<counter>`, 0 for foreign ids."""
    tail = write_id.rpartition("-")[2]
    return int(tail) if tail.isascii() and tail.isdigit() else 0


def with_commit(obs: Observation, commit: CommitRef) -> Observation:
    """Add a commit of this term; one step has one commit."""
    if any(known.step == commit.step for known in obs.commits):
        return obs
    commits = tuple(sorted((*obs.commits, commit), key=lambda known: known.step))
    of_term = obs.commits_of_term if obs.are_commits_known else (*obs.commits_of_term, commit)
    return _with_expired(replace(obs, commits=commits, commits_of_term=of_term))


def _with_expired(obs: Observation) -> Observation:
    """Keep the index of what retention no longer wants."""
    config = obs.config
    kept = Retention(
        keep_last=max(MIN_KEPT, config.keep_last),
        every_steps=config.keep_every_steps or None,
        hourly=max(0, config.keep_hourly),
        daily=max(0, config.keep_daily),
    )
    dated = (Dated(step=commit.step, committed_us=commit.committed_us) for commit in obs.commits)
    pinned = (commit.step for commit in obs.commits if commit.write_id in obs.pinned)
    steps = set(expired(dated, kept, pinned=pinned))
    unwanted = (commit for commit in obs.commits if commit.step in steps and commit.write_id not in obs.deleting)
    return replace(obs, expired=tuple(unwanted))


def on_deleted(obs: Observation, told: Deleted) -> Observation:
    """What is kept is not asked for at once: that would be asked for ever."""
    gone = obs.deleting.intersection(told.write_ids)
    commits = tuple(commit for commit in obs.commits if commit.write_id not in gone) if gone else obs.commits
    return replace(obs, commits=commits, deleting=obs.deleting - gone - {*told.kept})


def on_pinned(obs: Observation, told: Pinned) -> Observation:
    """The store's own word: what was to be deleted and is pinned is there and stays."""
    pinned = frozenset(told.write_ids)
    obs = replace(obs, pinned=pinned, deleting=obs.deleting - pinned)
    return _with_expired(obs) if obs.are_commits_known else obs


def deletions(obs: Observation) -> tuple[Effect, ...]:
    """What retention gives up, but never what is being restored."""
    if not obs.expired:
        return ()
    is_restoring = obs.gang in ("starting", "restoring")
    restored = obs.restore.write_id if obs.restore is not None and is_restoring else None
    unwanted = tuple(commit for commit in obs.expired if commit.write_id != restored)
    return (Delete(fence=obs.fence, commits=unwanted),) if unwanted else ()


def deleted(obs: Observation, effect: Delete) -> Observation:
    asked = frozenset(commit.write_id for commit in effect.commits)
    left: tuple[CommitRef, ...] = tuple(commit for commit in obs.expired if commit.write_id not in asked)
    known = asked.intersection(commit.write_id for commit in obs.expired)
    return replace(obs, expired=left, deleting=obs.deleting | known)


def rejections(obs: Observation) -> tuple[Effect, ...]:
    if obs.rejecting is None:
        return ()
    commit, reason = obs.rejecting
    return (Reject(fence=obs.fence, commit=commit, reason=reason),)


def rejected(obs: Observation, effect: Reject) -> Observation:
    write_id = effect.commit.write_id
    return replace(
        obs,
        rejecting=None,
        rejected=obs.rejected | {write_id},
        commits=tuple(commit for commit in obs.commits if commit.write_id != write_id),
        expired=tuple(commit for commit in obs.expired if commit.write_id != write_id),
    )
