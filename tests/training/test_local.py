"""The environments of one process: each call of each copy is told of, and none is left open."""

from typing import ClassVar

import jax
import pytest

from collect_cases import actors, recipe
from preqn_jax import envs
from preqn_jax.envs import EnvError
from preqn_jax.options import UserError
from preqn_jax.training import watch
from preqn_jax.training.local import Local
from tests import faulty

PLACE = watch.nowhere()


class Told(faulty.Faulty):
    """Notes where this process says it is, in each call."""

    seen: ClassVar = []

    def __init__(self):
        self.seen.append(tuple(PLACE))
        super().__init__()

    def reset(self, *, seed=None, options=None):
        self.seen.append(tuple(PLACE))
        return super().reset(seed=seed)

    def step(self, action):
        self.seen.append(tuple(PLACE))
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.steps % 5 == 0, {}

    def close(self):
        self.seen.append(tuple(PLACE))


def test_each_call_of_each_copy_has_the_whole_time():
    """Else many copies would count as hung together, each of which is in time."""
    built = recipe(Told, seeds=(7,), num_envs=5, update_every=10)
    actor = jax.tree.map(lambda leaf: leaf[0], actors(built))
    Told.seen.clear()
    local = Local(built, (7,), PLACE)
    local.call("collect", [(actor, 0)])
    local.call("evaluate", [(actor, 10)])
    local.call("load", [(state,) for state in local.call("save")])
    local.close()
    counts = {call: sum(one[0] == call for one in Told.seen) for call in range(8)}
    of_step, of_eval_step = counts.pop(watch.STEP), counts.pop(watch.EVAL_STEP)
    assert of_step == 10 and of_eval_step == 10
    assert counts == {
        watch.OUTSIDE: 0,
        watch.CONSTRUCTION: 7,
        watch.RESET: 5,
        watch.EVAL_RESET: 2,
        watch.LOAD: 5,
        watch.CLOSE: 7,
    }
    assert len(set(Told.seen)) == len(Told.seen)


class Counted(faulty.Faulty):
    """Notes which of its instances were closed; the third one fails, as it is made or reset."""

    made = 0
    closed: ClassVar = []

    def __init__(self, fault="", bad_reset=False):
        super().__init__(fault)
        Counted.made += 1
        self.number, self.bad_reset = Counted.made, bad_reset
        if self.number == 3 and not bad_reset:
            faulty.throw(RuntimeError("no licence"))

    def reset(self, *, seed=None, options=None):
        if self.number == 3:
            faulty.throw(RuntimeError("no licence"))
        return super().reset(seed=seed)

    def close(self):
        self.closed.append(self.number)
        faulty.throw(RuntimeError("closed twice"))


@pytest.mark.parametrize(("bad_reset", "open_"), [(False, [1, 2]), (True, [1, 2, 3, 4])])
def test_where_one_fails_those_that_were_made_are_closed(bad_reset, open_):
    Counted.made, source = 0, envs.described(Counted, {"bad_reset": bad_reset})
    Counted.closed.clear()
    built = recipe(source, seeds=(7,), num_envs=2)
    with pytest.raises(EnvError, match="raised RuntimeError: no licence"):
        Local(built, (7,), watch.nowhere())
    assert sorted(Counted.closed) == open_


@pytest.mark.parametrize("wrappers", [[], ["tests.faulty:NoSuchWrapper"]])
def test_one_that_cannot_be_trained_on_or_wrapped_is_closed(wrappers):
    closed = []

    class Odd(faulty.Faulty):
        observation_space = faulty.gymnasium.spaces.Text(5)

        def close(self):
            closed.append(self)

    with pytest.raises(UserError):
        envs.make(envs.described(Odd, None, wrappers), 1)
    assert len(closed) == 1
