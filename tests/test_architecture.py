"""The structure promised by docs/how-it-works.md, read from the source with `ast`; each test reports all violations."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "quillgpt"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
LAYERS = (  # from the lowest to the highest: an import goes down or stays in its part
    {"errors", "openmp", "progress", "ascii_plot"},
    {"config", "records"},
    {"distributed", "files", "recipes"},
    {"run_dir"},
    {"tokenizer", "model", "optim"},
    {"runtime"},
    {"data"},
    {"pretrained"},
    {"checkpoint", "sample"},
    {"evaluate"},
    {"training"},
    {"lab", "export"},
    {"cli"},
)
ALONE = {"explain": {"cli/explain.py"}}  # imports nothing of quillgpt but itself, and only these files import it
OPTIONAL = {"pyarrow", "scipy", "datasets", "wandb", "tensorboard", "trackio", "transformers", "matplotlib", "jinja2"}
OPTIONAL |= {"lm_eval", "gguf", "onnx", "onnxscript", "onnxruntime", "tenseal"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TRAIN = 500, 60, 110


def part_of(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def module_of(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(name) for name in FILES}


def imports(name: str, *, at_import_time: bool = False) -> set[str]:
    """The modules of quillgpt that a file imports, as dotted names below the package."""
    tree = TREES[name]
    inner = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}
    typing = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    inner |= {id(node) for outer in typing for node in ast.walk(outer)}
    found = set()
    for node in ast.walk(tree):
        if at_import_time and id(node) in inner:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quillgpt":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inside = f"{base}.{alias.name}".lstrip(".")
                found.add(inside if inside in MODULES else base)
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("quillgpt.")}
    return found


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def test_an_import_goes_down_or_stays_in_its_part() -> None:
    parts = {part_of(name) for name in FILES} - {"__init__", "__main__"}
    assert parts == set(ALONE).union(*LAYERS)
    upward = []
    for name in FILES:
        part = part_of(name)
        if part in ("__init__", "__main__"):
            continue
        for imported in imports(name):
            other = imported.partition(".")[0]
            if part in ALONE or other in ALONE:
                is_allowed = other == part or name in ALONE.get(other, set())
            else:
                is_allowed = other == part or layer_of(other) < layer_of(part)
            if not is_allowed:
                upward.append(f"{name} imports {imported}")
    assert upward == []


def test_the_import_graph_has_no_circle() -> None:
    graph = {module_of(name): imports(name, at_import_time=True) & MODULES for name in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module] - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_files_and_functions_stay_readable_and_have_docstrings() -> None:
    faults = []
    for name, tree in TREES.items():
        lines = len(FILES[name].read_text().splitlines())
        if lines > LONGEST_FILE:
            faults.append(f"{name} has {lines} lines")
        if not ast.get_docstring(tree):
            faults.append(f"{name} has no docstring")
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for node in functions:
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > (LONGEST_TRAIN if node.name == "train" else LONGEST_FUNCTION):
                faults.append(f"{name}: {node.name} has {length} lines")
        private = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.startswith("_")]
        nested = {id(inner) for outer in [*functions, *private] for inner in ast.walk(outer) if inner is not outer}
        for node in ast.walk(tree):
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_public and id(node) not in nested and not ast.get_docstring(node):
                faults.append(f"{name}: {node.name} has no docstring")
    assert faults == []


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:  # explain/ is read by itself and repeats the names of the model on purpose
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and part_of(name) != "explain":
                places[node.name].append(name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


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


def test_only_files_py_writes_files() -> None:
    writers = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if name != "files.py" and writes_files(node)
    ]
    assert writers == []


FORBIDDEN = ("pickle.load", "weights_only=False", "yaml.load(", "extractall", "shell=True", "except Exception")
FORBIDDEN += ("except:", "TODO", "FIXME", "NotImplementedError")
READS_ENVIRONMENT = ("runtime.py", "distributed.py", "openmp.py")


def test_nothing_unsafe_nothing_unfinished_and_the_environment_is_read_in_three_files() -> None:
    faults = []
    for name, tree in TREES.items():
        text = FILES[name].read_text()
        words = FORBIDDEN if name in READS_ENVIRONMENT else (*FORBIDDEN, "os.environ", "getenv")
        faults += [f"{name}: {word}" for word in words if word in text]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                faults.append(f"{name}:{node.lineno}: {node.func.id}")
    assert faults == []


def test_only_the_command_line_and_the_training_screen_print() -> None:
    faults = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if part_of(name) not in ("cli", "explain")
    ]
    assert faults == []


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {name.split(".")[0] for name in output.split()}


def test_the_command_line_and_the_settings_load_without_torch() -> None:
    parts = ("cli", "config", "errors", "files", "recipes", "openmp", "run_dir")
    modules = [module_of(name) for name in FILES if part_of(name) in parts and name != "cli/bench_table.py"]
    loaded = modules_after("import quillgpt\n" + "\n".join(f"import quillgpt.{module}" for module in modules))
    assert not loaded & {"torch", "numpy", "tokenizers", "tiktoken", "safetensors"}
    assert "tyro" in loaded


def test_no_module_loads_an_optional_package() -> None:
    skipped = ("__main__", "training.track.", "export.modeling_quillgpt")
    modules = [module for module in sorted(MODULES) if module and not module.startswith(skipped)]
    assert (
        not modules_after("\n".join(f"import quillgpt.{module}" for module in modules if module != "__init__"))
        & OPTIONAL
    )


def test_no_committed_file_names_a_path_of_this_machine() -> None:
    here = str(ROOT.parent) + "/"
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    named = []
    for name in tracked.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in (".py", ".md", ".toml", ".lock", "") and path.is_file():
            named += [name] if here in path.read_text(errors="replace") else []
    assert named == []
