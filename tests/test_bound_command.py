"""`jaxprune bound` and the study behind it."""

import io
import json

import pytest
from rich.console import Console

from jaxprune import bounds, laws, networks, pruning, report
from jaxprune.cli import main
from jaxprune.studies.bound import bound

NETWORK, LAW = networks.dense((8, 8, 8, 8)), laws.uniform(6**0.5)
AMOUNT = pruning.Sublinear(0.25)


@pytest.mark.ci
def test_the_study_gives_what_the_library_gives():
    result = bound(NETWORK, LAW, [pruning.magnitude, pruning.random], AMOUNT, delta=0.1, eps=12.0)
    json.dumps(result, allow_nan=False)
    for found, method in zip(result["methods"], (pruning.magnitude, pruning.random), strict=True):
        certificate = bounds.certify(NETWORK, LAW, method, AMOUNT, delta=0.1)
        assert found["pruning"] == method.name
        assert found["certificate"]["eps"] == certificate.eps
        assert sum(e["delta"] for e in found["certificate"]["events"]) == pytest.approx(0.1)
        rows = {(tuple(row["layers"]), row["matrix"]): row["bounds"] for row in found["norms"]}
        assert set(rows) == {
            (NETWORK.names, "weights"),
            (("dense2",), "removed"),
        }
        removed = bounds.removed_norm_bounds(NETWORK.layers[1], LAW, method, AMOUNT, delta=0.1)
        answers = [answer["value"] for answer in rows[("dense2",), "removed"]]
        assert answers == [answer.value for answer in removed]
        typical = bounds.infinite_width(NETWORK, LAW, method, AMOUNT)
        assert found["infinite_width"]["typical_gap"] == typical.typical_gap
        inverses = found["inverses"]
        delta = bounds.least_delta(NETWORK, LAW, method, AMOUNT, eps=12.0)
        assert inverses["least_delta"] == {"theorem": delta, "infinite_width": None}
        sparsity = bounds.largest_sparsity(NETWORK, LAW, method, eps=12.0, delta=0.1)
        assert inverses["largest_sparsity"]["theorem"] == sparsity.sparsity
        width = bounds.least_width(
            lambda d: networks.dense((d,) * 4), LAW, method, AMOUNT, eps=12.0, delta=0.1
        )
        assert inverses["least_width"]["theorem"] == width.width
        assert inverses["least_width"]["widths"] == ["d"] * 4
    limits = [
        bounds.magnitude_threshold(NETWORK.layers[1], LAW, AMOUNT, delta=d) for d in (0.9, 0.1)
    ]
    assert [m["thresholds"] for m in result["methods"]] == [{"dense2": limits}, {}]


def test_the_command_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "bound.json"
    status = main(["bound", "--widths", "16", "16", "16", "--layers", "dense2", "--sparsity", "0.1",
                   "--pruning", "random", "--delta", "0.2", "--json", str(path)])  # fmt: skip
    out = capsys.readouterr().out
    result = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    [method] = result["methods"]
    network = networks.dense((16, 16, 16))
    eps = bounds.certify(
        network, LAW, pruning.random, pruning.Fraction(0.1), layers="dense2", delta=0.2
    ).eps
    assert status == 0 and method["certificate"]["eps"] == pytest.approx(eps)
    assert method["inverses"] is None
    printed = float(" ".join(out.split()).split("dense2 is within ")[1].split(" of ")[0])
    assert eps <= printed <= 1.01 * eps
    assert method["norms"][0]["bounds"][0]["name"] in out and "Theorem 2" in out


def test_convolutions(tmp_path):
    path = tmp_path / "bound.json"
    arguments = ["--channels", "2", "2", "2", "--size", "4", "--layers", "conv2", "--count", "5",
                 "--pruning", "random", "--eps", "4", "--json", str(path)]  # fmt: skip
    assert main(["bound", *arguments]) == 0
    [method] = json.loads(path.read_text())["methods"]
    assert method["infinite_width"] is None and method["inverses"]["least_width"] is None
    network = networks.convolutional((2, 2, 2), 4)
    arguments = (network, LAW, pruning.random, pruning.Count(5))
    assert method["certificate"]["eps"] == bounds.certify(*arguments, layers="conv2").eps
    amounts = bounds.largest_amounts(*arguments[:3], eps=4.0, layers="conv2")
    assert method["inverses"]["largest_amounts"] == {
        "theorem": {"removed": {"conv2": amounts.amounts["conv2"].k}, "sparsity": amounts.sparsity,
                    "eps": amounts.eps},
        "infinite_width": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--delta", "2"], "delta = 2.0"),
        (["--alpha", "0.5", "--count", "3"], "count = 3"),
        (["--count", "99999999"], "count = 99999999"),
        (["--widths", "5", "6", "--channels", "3"], "widths = "),
        (["--size", "5"], "size = 5"),
        (["--channels", "3", "4"], "size: missing"),
        (["--pruning", "magnitud"], "pruning = 'magnitud'"),
        (["--law", "cauchy"], "law = 'cauchy'"),
        (["--eps", "-1"], "eps = -1.0"),
        (["--layers", "dense9"], "layers = 'dense9'"),
        (["--activation", "gelu"], "activation = 'gelu'"),
        (["--gain", "1e200"], "gain = 1e+200"),
        (["--gain", "1e100", "--eps", "1"], "gain = 1e+100"),
        (["--gain", "1e-200"], "gain = 1e-200"),
    ],
)
def test_bad_input_is_one_line(arguments, named, tmp_path, capsys):
    path = tmp_path / "x.json"
    assert main(["bound", *arguments, "--json", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"jaxprune: {named}") and err.count("\n") == 1
    assert not path.exists()


def test_nothing_and_everything_removed(capsys):
    """No threshold, no correlation, no least width: dashes, not failures."""
    for sparsity in ("0", "1"):
        arguments = ["--widths", *"8888", "--sparsity", sparsity, "--pruning", "magnitude"]
        assert main(["bound", *arguments, "--eps", "50"]) == 0
        out = capsys.readouterr().out
        assert "Threshold" not in out and "largest common sparsity" in out
        assert ("is within 0 of" in out) == (sparsity == "0") == ("least d" not in out)
        assert ("outputs none" in out) == (sparsity == "1")


def test_a_delta_that_one_minus_it_loses(capsys):
    arguments = ["--widths", *"8888", "--pruning", "magnitude", "--delta", "1e-300"]
    assert main(["bound", *arguments]) == 0
    out = capsys.readouterr().out
    assert "with probability at least 1 − 1e-300" in " ".join(out.split())
    assert "between 0 and" in out


@pytest.mark.parametrize("columns", [80, 120])
def test_every_number_fits_the_terminal(columns):
    result = bound(networks.dense((512,) * 4), LAW, [pruning.magnitude], AMOUNT, delta=0.01)
    console = Console(file=io.StringIO(), width=columns)
    report.render(result, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    [method] = result["methods"]
    for event in method["certificate"]["events"]:
        name = "spread" if event["name"] == "deviations" else event["name"]
        assert any(event["what"] in line and name in line for line in lines), event
    for answer in method["norms"][0]["bounds"]:
        assert any(answer["name"] in line for line in lines)
