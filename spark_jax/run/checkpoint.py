"""Checkpoints of a run: what a killed run needs to go on as if it had not been killed.

`checkpoints/STEP/` holds parameters, optimiser state and the run's own small state (a dict that
fits into JSON); `checkpoints/reference/` holds the parameters after the warm-up, saved once since
they never change. Orbax writes each under a temporary name and renames it when it is complete, so
a run killed at any moment leaves only whole checkpoints and rubbish that the next start removes.
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from spark_jax.types import UserError


class Restored(NamedTuple):
    """One checkpoint, read back."""

    step: int
    params: Any
    opt_state: Any  # None when it was not asked for
    state: dict[str, Any]  # the run's own state, as given to `save`


NEWEST, REFERENCE, INITIAL = "newest", "reference", "initial"


class Checkpoints:
    """The checkpoints of one work folder. Only one writer may have it open.

    Args:
      workdir: the work folder; its `checkpoints/` is made when it is missing.
      keep: newest checkpoints that stay (the reference always stays).
      read_only: for evaluation and reports beside a running training: nothing is made or removed.
    """

    def __init__(self, workdir: pathlib.Path | str, keep: int = 2, read_only: bool = False):
        self._folder = pathlib.Path(workdir).resolve() / "checkpoints"
        if not read_only:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self._folder} cannot be made ({error.strerror}); choose another --workdir."
                ) from None
        if not read_only and jax.process_index() == 0:
            # Orbax can do this too, but in the background, where it could meet a new save.
            for left in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        self._manager = None
        if self._folder.is_dir():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    # Saving is rare and short beside an iteration; done in the foreground, what
                    # is on the disk when `save` returns is what a restart finds.
                    enable_async_checkpointing=False,
                    preservation_policy=checkpoint_managers.LatestN(keep),
                ),
                item_names=("params", "opt_state", "state"),
            )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return None if self._manager is None else self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return [] if self._manager is None else sorted(self._manager.all_steps())

    def save(self, step: int, params: Any, opt_state: Any, state: dict[str, Any]) -> None:
        """Saves a checkpoint; it is complete when this returns, and old ones are removed.

        Args:
          step: larger than every saved step.
          params, opt_state: pytrees of arrays, sharded or not.
          state: what JSON can hold (phase, iteration, best score, ...).
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"checkpoint {step} comes after {latest}")
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                state=ocp.args.JsonSave(state),
            ),
        )
        self._manager.wait_until_finished()

    def restore(self, params: Any, opt_state: Any = None, step: int | None = None) -> Restored:
        """Reads a checkpoint.

        Args:
          params, opt_state: pytrees of arrays or jax.ShapeDtypeStruct that say the structure,
            shapes, dtypes and, where they carry one, the shardings to restore to. Without
            `opt_state` it is not read (evaluation needs the parameters only).
          step: None is the newest complete one.

        Raises:
          UserError: there is none, or it does not fit (another model).
        """
        steps = self.all_steps()
        if step is None and steps:
            step = steps[-1]
        if step is None or step not in steps:
            have = f"it has steps {', '.join(map(str, steps))}" if steps else "it has none"
            raise UserError(
                f"{self._folder} holds no complete checkpoint{'' if step is None else f' {step}'} "
                f"({have}); give the work folder of a run that has saved one."
            )
        _check_fit(self._folder / str(step) / "params", params)
        items = {"params": ocp.args.StandardRestore(abstract(params))}
        if opt_state is not None:
            items["opt_state"] = ocp.args.StandardRestore(abstract(opt_state))
        items["state"] = ocp.args.JsonRestore()
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(_unfit(self._folder / str(step), error)) from error
        return Restored(
            step, out["params"], out["opt_state"] if opt_state is not None else None, out["state"]
        )

    def newest_state(self) -> dict[str, Any] | None:
        """The run's own state in the newest checkpoint alone, or None when there is none."""
        step = self.latest_step()
        if step is None:
            return None
        try:
            read = ocp.args.Composite(state=ocp.args.JsonRestore())
            return self._manager.restore(step, args=read)["state"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(_unfit(self._folder / str(step), error)) from error

    def save_reference(self, params: Any) -> None:
        """Saves the parameters after the warm-up, replacing those of an interrupted warm-up."""
        with ocp.StandardCheckpointer() as writer:
            writer.save(self._folder / "reference", params, force=True)
            writer.wait_until_finished()

    def restore_reference(self, params: Any) -> Any:
        """Reads the reference parameters; `params` as in `restore`.

        Raises:
          UserError: the run has not finished its warm-up, or another model was saved.
        """
        path = self._folder / "reference"
        if not path.is_dir():
            raise UserError(
                f"{self._folder} holds no reference parameters; they exist once the warm-up of "
                "the run is done."
            )
        _check_fit(path, params)
        try:
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(path, abstract(params))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(_unfit(path, error)) from error

    def close(self) -> None:
        """Releases Orbax's threads."""
        if self._manager is not None:
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_checkpoint(workdir: pathlib.Path | str, checkpoint: str) -> None:
    """Raises UserError, before a model is loaded, where `saved_parameters` would."""
    if checkpoint not in (NEWEST, REFERENCE, INITIAL) and not checkpoint.isdigit():
        raise UserError(
            f"there is no checkpoint {checkpoint!r}: name newest, a step, reference or initial."
        )
    if checkpoint != INITIAL and not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise UserError(
            f"{workdir} holds no checkpoint; give the work folder of a run, or the checkpoint "
            "initial for the model's own weights."
        )


def saved_parameters(workdir: pathlib.Path | str, params: Any, checkpoint: str) -> tuple[Any, int]:
    """Parameters of a run and the step that they belong to.

    Args:
      params: a model's own ones, in structure and place.
      checkpoint: "newest", a step, "reference" (after the warm-up), or "initial": `params`.

    Raises:
      UserError: the run has no such checkpoint, or another model was saved.
    """
    check_checkpoint(workdir, checkpoint)
    if checkpoint == INITIAL:
        return params, 0
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if checkpoint == REFERENCE:
            return checkpoints.restore_reference(params), 0
        saved = checkpoints.restore(params, step=None if checkpoint == NEWEST else int(checkpoint))
        return saved.params, saved.step


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a pytree; one without shardings goes to the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or here)

    return jax.tree.map(leaf, tree)


def _check_fit(path: pathlib.Path, wanted: Any) -> None:
    """Compares names and shapes before anything is read, to name the first one that differs."""
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(path).item_metadata
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(_unfit(path, error)) from error
    there, here = _shapes(getattr(stored, "tree", stored)), _shapes(wanted)
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            old, new = (f"has shape {s[name]}" if name in s else "is absent" for s in (there, here))
            raise UserError(
                f"the checkpoint {path} does not fit: {name} {old} there and {new} in this model; "
                "use the model that the run trained."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unfit(path: pathlib.Path, error: Exception) -> str:
    first = " ".join(str(error).split())[:200]
    return (
        f"the checkpoint {path} cannot be read ({first}); go on from an older copy of the folder."
    )
