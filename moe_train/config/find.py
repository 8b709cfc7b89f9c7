"""Finds the file of a recipe or of a base, by path or by the name of one that comes with moe-train.

If there is no such file, the error suggests the files that may be meant.
"""

import difflib
import os
from pathlib import Path

from moe_train.errors import RecipeError

SOURCE_TREE = Path(__file__).resolve().parents[2] / "recipes"
INSTALLED = Path(__file__).resolve().parents[1] / "_recipes"
SUFFIXES = (".yaml", ".yml")


def find_recipe(recipe: str | Path) -> Path:
    """Returns the file a recipe argument means: a path, or a name below the recipes that come with moe-train."""
    name = Path(recipe)
    path = _file(name) or _shipped(name)
    if path is None:
        raise RecipeError(f"recipe={recipe}: {_missing(name)}")
    return path


def find_base(base: str, recipe: Path) -> Path:
    """Returns the file of `_base: base` in the file `recipe`: relative to it, or one that comes with moe-train."""
    path = _file(recipe.parent / base) or _shipped(Path(base))
    if path is None:
        below = Path(*(part for part in Path(base).parts if part != ".."))
        hint = (
            f"did you mean _base: {below}, which comes with moe-train?"
            if _shipped(below)
            else _similar(recipe.parent / base)
            or "correct the path, which is relative to that file, or name a recipe that comes with moe-train, such as "
            "_base/tiny.yaml"
        )
        raise RecipeError(f"_base={base}: {recipe} names a base that does not exist; {hint}")
    return path


def _file(path: Path) -> Path | None:
    # os.path instead of Path: it returns False for a name that is too long for the file system.
    return next((name for name in (path, Path(f"{path}.yaml")) if os.path.isfile(name)), None)


def _shipped_folder() -> Path:
    return SOURCE_TREE if os.path.isdir(SOURCE_TREE) else INSTALLED


def _below_recipes(path: Path) -> Path:
    """Returns the name below `recipes`, whether it begins with that or not."""
    return Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path


def _shipped(path: Path) -> Path | None:
    return _file(_shipped_folder() / _below_recipes(path))


def _missing(path: Path) -> str:
    """Returns the rule and the way out for a recipe that does not exist."""
    shipped = _shipped_folder()
    name = _below_recipes(path)
    if os.path.isdir(path):
        return f"is a folder; name one YAML file in it{_listed(path, path)}"
    if os.path.isdir(shipped / name):
        return f"is a folder of recipes; name one file in it{_listed(shipped / name, Path('recipes') / name)}"
    if similar := _similar(path):
        return f"there is no such file; {similar}"
    recipes = sorted(str(recipe.relative_to(shipped)) for recipe in shipped.glob("[!_]*/*.yaml"))
    close = difflib.get_close_matches(str(name), recipes, n=1, cutoff=0.7)
    folders = ", ".join(sorted({Path(each).parent.name for each in recipes})) or "none"
    hint = f"did you mean recipes/{close[0]}?" if close else f"recipes/ has one folder per system: {folders}"
    return f"there is no such file; {hint}"


def _listed(folder: Path, prefix: Path) -> str:
    """Returns `, such as FOLDER/tiny.yaml; it has ...` for the YAML files of a folder."""
    names = _yaml_files(folder)
    if not names:
        tiny = sorted(folder.glob("[!_]*/tiny.yaml"))
        return f" or below it, such as {prefix / tiny[0].relative_to(folder)}" if tiny else "; it has none"
    first = "tiny.yaml" if "tiny.yaml" in names else names[0]
    return f", such as {prefix / first}" + (f"; it has {', '.join(names)}" if len(names) > 1 else "")


def _similar(path: Path) -> str:
    """Returns `did you mean FOLDER/my.yaml?` for a file of the same folder with a name similar to `path`'s."""
    stems = {Path(name).stem: name for name in _yaml_files(path.parent)}
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.7)  # an ending alone is no likeness
    return f"did you mean {path.parent / stems[close[0]]}?" if close else ""


def _yaml_files(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    except OSError:  # not there, too long, or closed to us
        return []
