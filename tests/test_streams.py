"""The words that `tests/streams/run.py` tests, and what it makes of dieharder's answers."""

import shutil
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from streams import run

from jaxprune import bits
from jaxprune.engine import keys

LAST = 2**32 - 1

OUTPUT = """\
#=============================================================================#
#            dieharder version 3.31.1 Copyright 2003 Robert G. Brown          #
#=============================================================================#
   rng_name    |rands/second|   Seed   |
stdin_input_raw|  1.20e+07  |3290218542|
#=============================================================================#
        test_name   |ntup| tsamples |psamples|  p-value |Assessment
#=============================================================================#
        diehard_runs|   0|    100000|     100|0.91212635|  PASSED  
        diehard_runs|   0|    100000|     100|0.00000000|  FAILED  
        diehard_sums|   0|       100|     100|0.00000000|  FAILED  
      rgb_lagged_sum|   7|   1000000|     100|1.00000000|  FAILED  
        dab_filltree|  32|  15000000|       1|0.99562691|   WEAK   
"""


@partial(jax.jit, static_argnums=0)
def words_of(stream, root, purpose, layer, high, low):
    """Words of a trial by the package and by JAX."""
    key = keys.trial_key(root, purpose, layer, (high, low))
    return bits.random_bits(key, (run.WORDS,), stream), jax.random.bits(key, (run.WORDS,))


@pytest.mark.parametrize("order", run.ORDERS)
@pytest.mark.parametrize("stream", bits.STREAMS)
def test_words_are_those_of_the_trials_in_the_documented_order(stream, order):
    seed, high, number = 7, 3, 2
    blocks = run.blocks(stream, order, seed, high)
    got = [next(blocks) for _ in range(number + 1)][number]
    shape = (run.LAYERS, keys.TRIAL_PURPOSES)
    if order == "words":
        x = got.reshape(run.TOGETHER, *shape, run.WORDS)
    else:
        x = np.moveaxis(got.reshape(run.WORDS, run.TOGETHER, *shape), 0, -1)
    for one, layer, purpose in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (255, 3, 2)]:
        mine = (seed + one, number) if order == "seeds" else (seed, number * run.TOGETHER + one)
        trial = (np.uint32(high), np.uint32(mine[1]))
        expected, standard = words_of(stream, keys.root_key(mine[0]), purpose, layer, *trial)
        if stream == bits.STANDARD:
            np.testing.assert_array_equal(expected, standard)
        np.testing.assert_array_equal(x[one, layer, purpose], expected)


def test_a_control_of_twenty_rounds_is_the_standard_stream(monkeypatch):
    trial = np.uint32(1), np.uint32(LAST)
    for order in run.ORDERS:
        expected = run.roots("threefry-20", order, 5)
        monkeypatch.setattr(bits, "STREAMS", {})
        got = run.roots("threefry-20", order, 5)
        monkeypatch.undo()
        np.testing.assert_array_equal(got, jax.random.key_data(expected))
    words = jax.jit(partial(run.drawn, "threefry-20"))(keys.root_key(5), trial)
    root = jax.random.key_data(keys.root_key(5))
    controlled = jax.jit(partial(run.controlled, 20))(root, trial)
    np.testing.assert_array_equal(controlled, words)


THREEFRY = jax.jit(bits._threefry, static_argnums=0)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((LAST, LAST), (LAST, LAST), (0xFD36D048, 0x2D17272C)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_thirteen_rounds_give_the_known_answers_of_random123(key, counter, expected):
    words = THREEFRY(bits.STREAMS[bits.FAST], *map(np.uint32, (*key, *counter)))
    assert tuple(map(int, words)) == expected


def test_p_values_are_read_and_judged():
    lines = run.parse(OUTPUT)
    assert lines[0] == run.Line("diehard_runs", 0, 0.91212635, "PASSED")
    assert [line.word for line in lines] == ["PASSED", "FAILED", "FAILED", "FAILED", "WEAK"]
    assert run.limit(50) == 1e-8 and run.limit(10_000) == run.PRINTED
    assert run.failures(lines, run.limit(50)) == [lines[1], lines[3]]
    assert run.failures(lines, 0.01) == [lines[1], lines[3], lines[4]]


@pytest.mark.parametrize("output", ["", OUTPUT[:900].split("|0.9")[0], OUTPUT + OUTPUT[-70:]])
def test_an_answer_without_p_values_is_none(output):
    if output.startswith(OUTPUT):
        output = output.replace("0.99562691", "       nan")
    with pytest.raises(ValueError, match="no p-value"):
        run.parse(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--streams", "philox"], "no such stream: philox"),
        (["--tests", "203 -n"], "no such test: 203 -n"),
        (["--seed", "-1"], "--seed: 0 to"),
        (["--orders", "layers"], "invalid choice"),
    ],
)
def test_bad_input_is_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_dieharder_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "dieharder is missing: apt-get install dieharder\n"


@pytest.mark.slow
def test_the_streams_pass_and_the_controls_fail():
    if not shutil.which("dieharder"):
        pytest.skip("dieharder is missing: apt-get install dieharder")
    done = subprocess.run([sys.executable, run.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the control fails at") == 2
