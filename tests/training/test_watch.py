"""When a call counts as one that does not return, look by look."""

from preqn_jax.training import watch


def told(*looks):
    """What a watch reports if it finds these places, one at each look."""
    place, heard, left = watch.nowhere(), [], list(looks)
    watching = watch.Watch([], 1.0, lambda i, at: heard.append((i, tuple(at))))

    class Script:
        def wait(self, seconds):
            assert seconds == 0.1
            if left:
                place[:] = left.pop(0)
                return False
            return True

    watching._places, watching._over = [place], Script()  # pyright: ignore
    watching._run()
    return heard


def call(count, what=watch.STEP):
    return (what, 7, 50, count)


def test_one_call_for_as_long_as_the_limit_is_told_of_and_once():
    assert told(*[call(1)] * 10) == []  # the first look finds it, and nine more find it still there
    assert told(*[call(1)] * 11) == [(0, call(1))]
    assert told(*[call(1)] * 40) == [(0, call(1))]


def test_another_call_starts_anew():
    assert told(*[call(1)] * 10, *[call(2)] * 10, *[call(1)] * 10) == []
    assert told(*[call(1)] * 11, *[call(2)] * 11) == [(0, call(1)), (0, call(2))]
    assert told(*(call(i) for i in range(40))) == []


def test_outside_of_all_calls_there_is_no_limit():
    assert told(*[call(1, watch.OUTSIDE)] * 40) == []
    assert told(*[call(1)] * 10, call(1, watch.OUTSIDE), *[call(1)] * 10) == []
