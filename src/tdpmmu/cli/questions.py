"""Questions as a command line puts them: scenario, kernel, patches, parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdpmmu.cli.errors import UsageError

if TYPE_CHECKING:
    from tdpmmu.scenarios.question import Question


def make_question(
    scenario: str,
    kernel: str,
    patches: tuple[str, ...],
    parameters: dict[str, Any],
    properties: str,
    settings: tuple[str, ...] = (),
) -> Question:
    """What the command line asks; UsageError if it makes no sense."""
    import dataclasses

    from tdpmmu.cli import user_files as files
    from tdpmmu.properties.catalogue import wanted
    from tdpmmu.scenarios.catalogue import parameter as parse_parameter
    from tdpmmu.scenarios.catalogue import patch_class
    from tdpmmu.scenarios.catalogue import scenario_class as find_scenario
    from tdpmmu.scenarios.question import Question
    from tdpmmu.versions.registry import UnknownName, apply, kernel_class

    scenario_class: type[Any] | None = None
    name: str | None = None
    if files.is_file(scenario):
        path, cls_name = files.split(scenario)
        found = files.scenarios_in(path)
        if found or not files.patches_in(path):
            scenario_class = files.the_one("scenario", path, cls_name, found)
            name = f"{path}:{scenario_class.__name__}"
        else:
            patches = (*patches, scenario)
    try:
        if scenario_class is None:
            scenario_class = find_scenario("nx-recovery" if files.is_file(scenario) else scenario)
        parameters = dict(parameters)
        for text in settings:
            field, value = parse_parameter(scenario_class, text)
            parameters[field] = value
        wanted(properties)
        classes = []
        names = []
        for one in patches:
            if files.is_file(one):
                path, cls_name = files.split(one)
                cls = files.the_one("patch", path, cls_name, files.patches_in(path))
                classes.append(cls)
                names.append(f"{path}:{cls.__name__}")
            else:
                classes.append(patch_class(one))
                names.append(one)
        mmu_class = apply(kernel_class(kernel), *classes)
        known = {field.name for field in dataclasses.fields(scenario_class)}
        for parameter in parameters:
            if parameter not in known:
                option = "--" + parameter.replace("_", "-")
                raise UsageError(f"the scenario {name or scenario} has no {option}")
        made = scenario_class(**parameters)
        made.build(mmu_class)
    except UnknownName as error:
        raise UsageError(str(error)) from None
    except (ValueError, TypeError) as error:
        raise UsageError(str(error).splitlines()[0]) from None
    return Question(made, mmu_class, kernel, tuple(names), properties, name)
