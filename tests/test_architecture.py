"""The structure that docs/ and the design promise, read from the source with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "quillgpt"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors", "openmp"},
    {"config"},
    {"hardware", "distributed", "files", "recipes", "student_t"},
    {"tokenizer", "model", "optim"},
    {"data", "run_dir"},
    {"sample", "pretrained", "run_record"},
    {"checkpoint", "evaluate"},
    {"train"},
    {"export", "encryption", "compare", "doctor", "report", "bench"},
    {"cli"},
]
ALONE = {"explain": {"cli/explain.py"}}  # imports nothing of quillgpt but itself, and only these files import it
STRANGERS = {"tokenizer", "model", "optim"}  # one layer, and they do not know each other
OPTIONAL = {
    "pyarrow",
    "datasets",
    "wandb",
    "tensorboard",
    "trackio",
    "transformers",
    "matplotlib",
    "lm_eval",
    "gguf",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tenseal",
}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TRAIN = 300, 60, 120


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Everything of quillgpt that a file imports, also inside functions, as dotted names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quillgpt":
            rest = node.module.split(".")[1:]
            found |= {".".join(rest)} if rest else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("quillgpt.") for alias in node.names if alias.name.startswith("quillgpt.")
            }
    return found


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_import_goes_down_or_stays_in_its_folder(path: Path) -> None:
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return
    for imported in imports(path):
        other = imported.split(".")[0]
        if part in ALONE or other in ALONE:
            allowed = other == part or name_of(path) in ALONE.get(other, set())
        else:
            allowed = other == part or layer_of(other) < layer_of(part)
        assert allowed, f"{part} imports {imported}"


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__", "__main__"}
    assert parts == set(ALONE).union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            limit = LONGEST_TRAIN if node.name == "train" else LONGEST_FUNCTION
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_and_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file has none"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            nested = any(
                node in ast.walk(outer)
                for outer in ast.walk(tree)
                if isinstance(outer, ast.FunctionDef) and outer is not node
            )
            assert nested or ast.get_docstring(node), f"{node.name} has none"


WRITING = {
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "unlink",
    "rmtree",
    "rename",
    "replace",
    "truncate",
    "save_file",
}


def writes_files(node: ast.AST) -> bool:
    """Whether a call opens a file for writing or changes the file system by itself."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    attribute = function.attr if isinstance(function, ast.Attribute) else ""
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if attribute == "open" or (isinstance(function, ast.Name) and function.id == "open"):
        modes = [
            argument.value
            for argument in [*node.args, *[word.value for word in node.keywords if word.arg == "mode"]]
            if isinstance(argument, ast.Constant)
        ]
        return any(isinstance(mode, str) and set(mode) & set("wax+") and set(mode) <= set("rwxabt+") for mode in modes)
    if owner == "files" or attribute not in WRITING:
        return False
    return attribute != "replace" or owner == "os"


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "files.py"], ids=name_of)
def test_only_files_py_writes_files(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not writes_files(node), f"line {node.lineno}: {ast.unparse(node)}"


FORBIDDEN = (
    "pickle.load",
    "weights_only=False",
    "yaml.load(",
    "extractall",
    "shell=True",
    "except Exception",
    "except:",
)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unsafe_and_nothing_left_for_later(path: Path) -> None:
    text = path.read_text()
    for words in (*FORBIDDEN, "TODO", "FIXME", "NotImplementedError"):
        assert words not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_environment_is_read_in_three_files_only(path: Path) -> None:
    if name_of(path) not in ("hardware.py", "distributed.py", "openmp.py"):
        assert "os.environ" not in path.read_text()
        assert "getenv" not in path.read_text()


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {name.split(".")[0] for name in output.split()}


def test_the_command_line_and_the_settings_load_without_torch() -> None:
    names = [name_of(path) for path in FILES if part_of(path) in ("cli", "config", "errors", "files", "recipes")]
    needs_torch = {"cli/dry_run.py", "cli/bench_table.py"}  # imported by `quill train --dry-run`, `quill bench` alone
    modules = [
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for name in names
        if name not in needs_torch
    ]
    loaded = modules_after("import quillgpt\n" + "\n".join(f"import quillgpt.{module}" for module in modules))
    assert not loaded & {"torch", "numpy", "tokenizers", "tiktoken", "safetensors"} & loaded
    assert "rich" in loaded or "tyro" in loaded


def test_no_module_loads_an_optional_package() -> None:
    skipped = {
        "__main__.py",
        "train/track/wandb_tracker.py",
        "train/track/tensorboard_tracker.py",
        "train/track/trackio_tracker.py",
        "export/custom_code/configuration_quillgpt.py",
        "export/custom_code/modeling_quillgpt.py",
    }
    names = [name_of(path) for path in FILES if name_of(path) not in skipped]
    modules = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in names]
    loaded = modules_after(
        "\n".join(f"import quillgpt.{module}".removesuffix(".__init__") for module in modules if module != "__init__")
    )
    assert not loaded & OPTIONAL


def test_no_committed_file_names_a_path_of_this_machine() -> None:
    here = str(ROOT.parent) + "/"
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in (".py", ".md", ".toml", ".lock", "") and path.is_file():
            assert here not in path.read_text(errors="replace"), name
