"""Stand-ins: the converter leaves the projections' weights alone, and where it does not, it is noticed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("litert_torch")

CONVERT = """
import sys
import torch
from litert_torch._convert import interface
from converter.errors import TargetError
from targets.litert.export.projections import project
from targets.litert.export.placeholders import StandIns

stand_ins = StandIns()

def plain(x, weight):
    return torch.nn.functional.linear(x, weight)

class Scaled(torch.nn.Module):
    def __init__(self, product):
        super().__init__()
        self.product = product
        self.weight = stand_ins.parameter("a.weight", (96, 64))
        self.table = stand_ins.parameter("b.weight", (48, 64))

    def forward(self, tokens):
        x = torch.nn.functional.embedding(tokens, self.table)
        return self.product(x, self.weight) * 3.5

stand_ins.lower()
converter = interface.Converter()
module = Scaled(eval(sys.argv[1])).eval()
converter.add_signature("run", module, sample_kwargs={"tokens": torch.zeros((1, 2), dtype=torch.int32)})
converted = converter.convert(strict_export=False)
try:
    opened = stand_ins.open(converted)
    print(sorted(name for names in opened.values() for name in names))
except TargetError as error:
    print(error)
"""


def convert(product):
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, product], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_no_factor_is_folded_into_the_weight_of_a_projection():
    assert convert("project") == "['a.weight', 'b.weight']"


def test_a_folded_factor_is_noticed():
    assert convert("plain") == "the converter changed a weight of type tensor<96x64xf32>"


def test_a_stand_in_takes_no_memory():
    code = """
import resource
from targets.litert.export.placeholders import StandIns
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(StandIns().parameter("large", (1 << 20, 4096)).shape[0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 14)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["1048576", "True"], done.stderr[-2000:]
