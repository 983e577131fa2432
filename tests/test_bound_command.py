"""`jaxprune bound` and the study behind it."""

import json

import pytest

from jaxprune import bounds, laws, networks, pruning
from jaxprune.cli import main
from jaxprune.studies.bound import bound

NETWORK, LAW = networks.dense((8, 8, 8, 8)), laws.uniform(6**0.5)
AMOUNT = pruning.Sublinear(0.25)


def test_the_study_gives_what_the_library_gives():
    result = bound(NETWORK, LAW, [pruning.magnitude, pruning.random], AMOUNT, delta=0.1, eps=4.0)
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
        sparsity = bounds.largest_sparsity(NETWORK, LAW, method, eps=4.0, delta=0.1)
        assert inverses["largest_sparsity"]["theorem"] == sparsity.sparsity
        width = bounds.least_width(
            lambda d: networks.dense((d,) * 4), LAW, method, AMOUNT, eps=4.0, delta=0.1
        )
        assert inverses["least_width"]["theorem"] == (width and width.width)


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
    printed = float(out.split("P(gap ≤ ")[1].split(")")[0])
    assert eps <= printed <= 1.01 * eps
    assert method["norms"][0]["bounds"][0]["name"] in out and "Theorem 2" in out


def test_convolutions(tmp_path):
    path = tmp_path / "bound.json"
    arguments = ["--channels", "2", "4", "4", "--size", "6", "--layers", "all", "--count", "5",
                 "--eps", "1.5", "--json", str(path)]  # fmt: skip
    assert main(["bound", *arguments]) == 0
    for method in json.loads(path.read_text())["methods"]:
        assert method["infinite_width"] is None and method["inverses"]["least_width"] is None
        assert method["certificate"]["eps"] > 0


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
    ],
)
def test_bad_input_is_one_line(arguments, named, tmp_path, capsys):
    path = tmp_path / "x.json"
    assert main(["bound", *arguments, "--json", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"jaxprune: {named}") and err.count("\n") == 1
    assert not path.exists()
