"""Several modules of this package as one file that does not need the package.

The file has what its root module needs, directly or through others, as it is written: what an import from quillgpt
names takes the import's place, and what nobody uses is left out. Where two modules have the same name at their top
level, the second one's gets the module's name behind it.
"""

import ast
import builtins
import importlib.util
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "quillgpt"

Key = tuple[str, str]
"""a module and the name of something it defines"""


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """A file made of modules: its text, and the name it has for each thing."""

    text: str
    names: Mapping[Key, str]


def one_file(root: str, *, beside: Mapping[str, OneFile] | None = None) -> OneFile:
    """A file of the root module; what a file `beside` it has, by its name without .py, is imported from there."""
    given = {key: (stem, name) for stem, file in (beside or {}).items() for key, name in file.names.items()}
    needed = _Needed(root, given)
    names = needed.names()
    sections = []
    for source in needed.sources():
        parts = list(source.parts(needed.statements, {name: names[key] for name, key in source.keys(names).items()}))
        if parts:
            origin = [] if source.name == root else [f"# --- {source.name.replace('.', '/')}.py"]
            sections += [*origin, *parts]
    about = f'"""{ast.get_docstring(source_of(root).tree)}\n\nMade from quillgpt\'s own source.\n"""'
    text = "\n\n\n".join([about, "\n".join(needed.import_lines()), *sections]) + "\n"
    compile(text, root, "exec")
    return OneFile(text=text, names={key: name for key, name in names.items() if key not in given})


class Source:
    """A module's source: what each name at its top level means."""

    def __init__(self, name: str) -> None:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        self.name = name
        self._text = Path(found.origin).read_text(encoding="utf-8")
        self.tree = ast.parse(self._text)

    @cached_property
    def defined(self) -> dict[str, ast.stmt]:
        """Names that its own statements bind."""
        return {name: statement for statement in self.tree.body for name in _bound(statement)}

    @cached_property
    def ours(self) -> dict[str, Key]:
        """Names it imports from this package."""
        imports = [node for node in self.tree.body if isinstance(node, ast.ImportFrom) and _is_ours(node)]
        return {alias.asname or alias.name: (node.module or "", alias.name) for node in imports for alias in node.names}

    @cached_property
    def others(self) -> dict[str, str]:
        """Names it imports from elsewhere, each with the line that does so."""
        lines = {}
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not _is_ours(node):
                place = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    renamed = f" as {alias.asname}" if alias.asname else ""
                    lines[alias.asname or alias.name.split(".")[0]] = f"{place}import {alias.name}{renamed}"
        return lines

    def keys(self, known: Mapping[Key, str]) -> dict[str, Key]:
        """Its names for those things that are known."""
        own = {name: (self.name, name) for name in self.defined}
        imported = {name: origin(key) for name, key in self.ours.items()}
        return {name: key for name, key in (own | imported).items() if key in known}

    def parts(self, chosen: Set[ast.stmt], names: Mapping[str, str]) -> Iterator[str]:
        """The chosen statements under these names, with the comments before them and the sentences behind."""
        lines, end, part = self._text.splitlines(), 0, ""
        for statement in self.tree.body:
            begin, end = end, statement.end_lineno or 0
            if statement in chosen:
                if part:
                    yield part
                changed = {name: new for name, new in names.items() if name != new and name in _used(statement)}
                part = _renamed(statement, changed) if changed else "\n".join(lines[begin:end]).strip("\n")
            elif part and isinstance(statement, ast.Expr):
                part += "\n" + "\n".join(lines[begin:end]).strip("\n")
            elif part:
                yield part
                part = ""
        if part:
            yield part


_SOURCES: dict[str, Source] = {}


def source_of(module: str) -> Source:
    """The module's source, read once."""
    if module not in _SOURCES:
        _SOURCES[module] = Source(module)
    return _SOURCES[module]


def origin(key: Key) -> Key:
    """Where a thing is defined that a module may only have imported."""
    module, name = key
    source = source_of(module)
    return key if name in source.defined or name not in source.ours else origin(source.ours[name])


class _Needed:
    """Every statement that a root module needs, and the imports of those."""

    def __init__(self, root: str, given: Mapping[Key, tuple[str, str]]) -> None:
        self.statements: set[ast.stmt] = set()
        self._root, self._given, self._imports = root, given, {}
        for statement in source_of(root).defined.values():
            self._add(source_of(root), statement)

    def _add(self, source: Source, statement: ast.stmt) -> None:
        if statement in self.statements:
            return
        self.statements.add(statement)
        for name in sorted(_used(statement)):
            if name in source.others:
                line = source.others[name]
                if self._imports.setdefault(name, line) != line:
                    raise ValueError(f"{source.name}: {name} is `{line}` here and `{self._imports[name]}` elsewhere")
            elif name in source.defined or name in source.ours:
                key = origin((source.name, name))
                if key in self._given:
                    stem, theirs = self._given[key]
                    self._imports[theirs] = f"from .{stem} import {theirs}"
                else:
                    module = source_of(key[0])
                    self._add(module, module.defined[key[1]])

    def sources(self) -> list[Source]:
        """The modules, each behind those it imports."""
        ordered: dict[str, Source] = {}

        def visit(module: str) -> None:
            if module not in seen:
                seen.add(module)
                for other, _ in source_of(module).ours.values():
                    visit(other)
                ordered[module] = source_of(module)

        seen: set[str] = set()
        visit(self._root)
        return list(ordered.values())

    def names(self) -> dict[Key, str]:
        """A name for each thing, unlike all others, Python's own and the imported ones."""
        found = {key: name for key, (_, name) in self._given.items()}
        taken = {*dir(builtins), *self._imports, *found.values()}
        for source in self.sources():
            for name, statement in source.defined.items():
                if statement in self.statements:
                    new = f"{name}_{source.name.rsplit('.', 1)[1]}" if name in taken else name
                    assert new not in taken, new
                    found[source.name, name] = new
                    taken.add(new)
        return found

    def import_lines(self) -> list[str]:
        """The imports, one line a module: whole modules first, files beside this one last."""
        grouped: dict[str, list[str]] = {}
        for line in sorted(set(self._imports.values())):
            head, _, name = line.partition(" import ")
            grouped.setdefault(head, []).append(name)
        heads = sorted(grouped, key=lambda head: ("from ." in head, head.startswith("from"), head))
        return [f"{head} import {', '.join(grouped[head])}" if grouped[head] != [""] else head for head in heads]


def _is_ours(node: ast.Import | ast.ImportFrom) -> bool:
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return any(module.split(".")[0] == PACKAGE for module in modules)


def _bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _used(statement: ast.stmt) -> set[str]:
    """Every name in a statement, its own included; an import from this package inside it could not be replaced."""
    nodes = list(ast.walk(statement))
    if any(isinstance(node, ast.Import | ast.ImportFrom) and _is_ours(node) for node in nodes):
        raise ValueError(f"line {statement.lineno}: imports from {PACKAGE} stand at the top of a module")
    return {node.id for node in nodes if isinstance(node, ast.Name)} | set(_bound(statement))


def _renamed(statement: ast.stmt, names: Mapping[str, str]) -> str:
    """The statement with other names for things outside of it; its comments are lost."""
    copy = ast.parse(ast.unparse(statement))
    for node in ast.walk(copy):
        if isinstance(node, ast.arg) and node.arg in names:
            raise ValueError(f"line {statement.lineno}: the parameter {node.arg} is also a name of the module")
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
    for node in copy.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.name = names.get(node.name, node.name)
    return ast.unparse(copy)
