"""Several modules as one file: what is needed is in it, in an order that runs, and names that were equal stay apart."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import quillgpt.export.one_file as made
from quillgpt.export.one_file import OneFile, one_file

Package = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Write the modules of a package `small`."""
    monkeypatch.setattr(made, "PACKAGE", "small")
    monkeypatch.setattr(made, "_SOURCES", {})
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> None:
        (tmp_path / "small").mkdir()
        for name, text in ({"__init__": ""} | modules).items():
            (tmp_path / "small" / f"{name}.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "small"]:
        del sys.modules[name]


def value(file: OneFile, name: str) -> object:
    """What a name is when the file is run where `small` cannot be imported."""
    namespace: dict[str, object] = {}
    saved, sys.path[:] = list(sys.path), []
    try:
        exec(file.text, namespace)
    finally:
        sys.path[:] = saved
    return namespace[name]


def test_what_is_used_is_there_and_what_is_not_used_is_not(package: Package) -> None:
    package(
        parts='"""Parts."""\nimport math\nimport json\n\nA = 2  # two\n"""the first"""\n\nUNUSED = json\n\n\n'
        "# a comment\ndef area(x):\n    return math.pi * A * x\n",
        menu="from small.parts import area as surface\n\nMENU = {'area': surface}\n",
        root='"""Root."""\nfrom small.menu import MENU\n\nRESULT = MENU["area"](1)\n',
    )
    file = one_file("small.root")
    assert value(file, "RESULT") == pytest.approx(6.283, abs=1e-3)
    assert 'A = 2  # two\n"""the first"""\n' in file.text
    assert "# a comment\ndef area" in file.text
    assert "UNUSED" not in file.text
    assert "json" not in file.text
    assert "small" not in file.text.replace("small/", "")


def test_equal_names_of_two_modules_stay_apart(package: Package) -> None:
    package(
        one="K = 1\n\n\ndef _inner(x):\n    return x + K\n\n\ndef one(x):\n    return _inner(x)\n",
        two="K = 10\n\n\ndef _inner(x):\n    return f'{x * K}'\n\n\ndef two(x):\n    return _inner(x)\n",
        root="from small.one import one\nfrom small.two import two\n\nRESULT = (one(5), two(5))\n",
    )
    file = one_file("small.root")
    assert value(file, "RESULT") == (6, "50")
    assert file.names["small.two", "_inner"] == "_inner_two"
    assert file.names["small.one", "_inner"] == "_inner"


def test_a_name_that_python_or_an_import_has_is_kept_free(package: Package) -> None:
    package(
        one="def max(x):\n    return 'ours'\n\n\ndef one():\n    return max(1)\n",
        root="import math\nfrom small.one import one\n\nRESULT = (one(), max(2, 3), math.floor(1.5))\n",
    )
    assert value(one_file("small.root"), "RESULT") == ("ours", 3, 1)


def test_what_another_file_has_is_imported_from_it(package: Package) -> None:
    package(
        shape="SIZE = 3\n\n\nclass Shape:\n    size = SIZE\n",
        config="from small.shape import Shape\n\n\nclass Config(Shape):\n    pass\n",
        root="from small.config import Config\nfrom small.shape import Shape\n\nRESULT = (Config, Shape)\n",
    )
    first = one_file("small.config")
    second = one_file("small.root", beside={"config": first})
    assert "from .config import Config, Shape\n" in second.text
    assert "class" not in second.text
    assert value(first, "Config").size == 3


@pytest.mark.parametrize(
    ("one", "complaint"),
    [
        ("def one():\n    from small.two import two\n    return two\n", "imports from small stand at the top"),
        ("def two():\n    return 1\n\n\ndef one(two=two):\n    return two\n", "the parameter two is also a name"),
        (
            "import json as math\n\n\ndef one():\n    return math\n",
            "math is `import math` here and",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(package: Package, one: str, complaint: str) -> None:
    package(
        two="import math\n\n\ndef two():\n    return math.pi\n",
        one=one,
        root="from small.two import two\nfrom small.one import one\n\nRESULT = (two(), one())\n",
    )
    with pytest.raises(ValueError, match=complaint):
        one_file("small.root")
