"""Programs are shared between equal arguments, and only between those."""

from trim_jax.xla import PROGRAMS, shared


def test_equal_arguments_share_a_program():
    made = []

    @shared
    def program(*args):
        made.append(args)
        return lambda: args

    assert program((1, 2), "a") is program((1, 2), "a")
    assert program((1, 2), "b") is not program((1, 2), "a")
    assert len(made) == 2
    # What cannot be hashed, or was long ago, is made again.
    assert program([1], "a")() == program([1], "a")() and program([1]) is not program([1])
    for i in range(PROGRAMS):
        program(i)
    first = len(made)
    program((1, 2), "a")
    assert len(made) == first + 1
