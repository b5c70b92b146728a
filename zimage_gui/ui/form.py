"""A form made from a command's schema: one widget per option, grouped in sections, errors beside the field.

Knows gradio and the schema. Declares no option of its own. Bounds are not given to gradio (it would refuse a
value with a message that names no field): the schema answers for every field, in the words of the command
line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from zimage_gui.config.build import each_field, gather, read
from zimage_gui.config.common import PictureFolder
from zimage_gui.config.idle import idle_options
from zimage_gui.config.paths import with_look
from zimage_gui.config.schema import SECTIONS, Option, Options, by_section, options_of
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.ui import values
from zimage_gui.ui.actions import QUIET, script
from zimage_gui.ui.drafts import Drafts
from zimage_gui.ui.html import escape, notice
from zimage_gui.ui.page import Page
from zimage_gui.ui.values import Raw

Component = Any  # gradio's components share no useful type
Updates = dict[Component, Any]

# Where gradio keeps a dropped file: a person knows it by its name.
_UPLOADED = re.compile(r"^.*[/\\][0-9a-f]{64}[/\\]")

LONG_TEXTS = frozenset({"prompt", "negative_prompt", "metadata_description"})


class Form:
    """All fields of one command. Build it inside a `gr.Blocks`; `name` is the draft's file name.

    `hidden` options get no widget (the window sets them); `extras` are widgets of a subclass that shows an
    option in another way, and are then read and filled by its `raw` and `put`.
    """

    def __init__(
        self, config_class: type[Options], name: str, drafts: Drafts, hidden: Iterable[str] = ()
    ) -> None:
        self.config_class = config_class
        self.name = name
        self.drafts = drafts
        self.hidden = set(hidden)
        self.fields: dict[str, Component] = {}
        self.sections: dict[str, Component] = {}
        self.extras: list[Component] = []
        self.problems: Component = None

    # ---- layout -----------------------------------------------------------------------------------------

    def build(self, sections: Sequence[str] | None = None, open_sections: Sequence[str] = ()) -> None:
        """Lay out the sections (all by default, in the schema's order) at the current place of the page."""
        for key, options in by_section(self.config_class).items():
            shown = [option for option in options if option.name not in self.hidden]
            if shown and (sections is None or key in sections) and key not in self.sections:
                self._section(key, shown, key in open_sections)

    def field(self, name: str, **changes: Any) -> Component:
        """One widget at the current place, outside any section; it then no longer appears in its section."""
        self.hidden.add(name)
        self.fields[name] = _widget(options_of(self.config_class)[name], self.name, changes)
        return self.fields[name]

    def finish(self) -> None:
        """The list of problems, at the current place; its script marks the fields."""
        self.problems = gr.HTML(
            "", js_on_load=script("problems.js"), apply_default_css=False, elem_id=f"{self.name}-problems"
        )

    def _section(self, key: str, options: list[Option], opened: bool) -> None:
        classes = ["zg-section"]
        if all(option.advanced for option in options):
            classes.append("zg-all-advanced")
        with gr.Accordion(
            SECTIONS[key], open=opened, elem_classes=classes, elem_id=f"{self.name}-{key}"
        ) as box:
            self.sections[key] = box
            with gr.Row(elem_classes=["zg-fields"]):
                for option in options:
                    self.fields[option.name] = _widget(option, self.name, {})

    # ---- values -----------------------------------------------------------------------------------------

    def inputs(self) -> set[Component]:
        """What a handler needs as inputs to call `raw` and `read`."""
        return {*self.fields.values(), *self.extras}

    def outputs(self) -> list[Component]:
        """What a handler that fills the form may change."""
        return [*self.fields.values(), *self.extras, self.problems]

    def raw(self, data: Mapping[Component, Any]) -> dict[str, Raw]:
        """Field contents by option name from a handler's inputs."""
        return {name: data[field] for name, field in self.fields.items() if field in data}

    def read(self, data: Mapping[Component, Any], **fixed: Any) -> Options:
        """The validated config; `fixed` sets hidden options. Raises UserError with every problem."""
        return self.config_of(self.raw(data), **fixed)

    def config_of(self, contents: Mapping[str, Raw], **fixed: Any) -> Options:
        """The same from field contents by name. Files that are not there are problems like any other."""
        given = {**self._said(contents), **fixed}
        config, problems = gather(self.config_class, [read(self.config_class, list(given.items()), None)])
        raise_if_any(with_look(config, problems)[0])
        return config

    def partial(self, data: Mapping[Component, Any]) -> Options:
        """The config whose fields are each right, though what they need together may still be missing."""
        config, problems = each_field(self.config_class, self._said(self.raw(data)))
        raise_if_any(problems)
        return config

    def _said(self, contents: Mapping[str, Raw]) -> dict[str, Any]:
        """The unchecked values that count: beside a dataset file its own, and not what is left in the fields
        of a plain folder, whose labels say so."""
        said = values.collect(self.config_class, contents)
        if issubclass(self.config_class, PictureFolder) and said.get("dataset_config"):
            beside = self.config_class.folder_options()
            said = {name: value for name, value in said.items() if name not in beside}
        return said

    def put(self, contents: Mapping[str, Raw], *, rest: bool = False) -> Updates:
        """Show these contents; with `rest`, every other field returns to its default."""
        shown = {**values.defaults(self.config_class), **contents} if rest else dict(contents)
        return {
            self.fields[name]: gr.update(value=value) for name, value in shown.items() if name in self.fields
        }

    def saved(self) -> Updates:
        """What stood in the form last time."""
        return self.put(self.drafts.load(self.name), rest=True)

    # ---- errors -----------------------------------------------------------------------------------------

    def complain(self, error: UserError) -> Updates:
        """Every sentence above the form, and each beside its field."""
        named = [replace(one, value=_UPLOADED.sub("", one.value)) for one in error.problems]
        return {self.problems: self._listed(named, (), quiet=False)}

    def noted(self, config: Options) -> Updates:
        """Errors taken back, and beside its field, and listed, each option that does nothing in `config`."""
        return {self.problems: self._listed((), idle_options(config), quiet=False)}

    def clear(self) -> Updates:
        """Take back the errors shown by an earlier `complain`."""
        return {self.problems: ""}

    def _listed(self, problems: Sequence[Problem], idle: Sequence[Problem], *, quiet: bool) -> str:
        """Problems, and options that do nothing, as HTML with what `problems.js` needs; a quiet list only
        marks the fields. Empty when there are none."""
        named = {one.option for one in problems}
        idle = [one for one in idle if one.option not in named]
        if not problems and not idle:
            return ""
        marks = json.dumps([*self._marks(problems, "error"), *self._marks(idle, "note")])
        data = f'data-form="{self.name}" data-problems="{escape(marks)}"'
        if quiet:
            return f'<div {data} data-quiet="1"></div>'
        count = len(problems)
        head = (
            "Please put this right first:" if count == 1 else f"Please put these {count} things right first:"
        )
        lists = self._list(head, problems, "bad") + self._list("Set, and without effect:", idle, "warn")
        return f"<div {data}>{lists}</div>"

    def _marks(self, problems: Sequence[Problem], kind: str) -> list[dict[str, str]]:
        known = options_of(self.config_class)
        return [
            {"option": one.option, "words": beside(one), "section": known[one.option].section, "kind": kind}
            for one in problems
            if one.option in known
        ]

    def _list(self, head: str, problems: Sequence[Problem], tone: str) -> str:
        lines = "".join(f"<li>{self._jump(problem)}</li>" for problem in problems)
        return notice(f"<b>{head}</b><ul>{lines}</ul>", tone, raw=True) if problems else ""

    def _jump(self, problem: Problem) -> str:
        """The sentence; a press leads to its field where there is one."""
        option = options_of(self.config_class).get(problem.option)
        if option is None:
            return escape(problem.sentence())
        words = escape(f"{option.label}: {beside(problem)}")
        if problem.option not in self.fields:
            return words
        return (
            f'<a class="zg-jump" href="#" data-jump="{self.name}--{problem.option}" '
            f'data-section="{option.section}">{words}</a>'
        )

    # ---- events -----------------------------------------------------------------------------------------

    def wire(self, page: Page) -> None:
        """Fill the fields when a page is opened, keep them when one is changed, look at each when it
        is left."""
        page.first(self.saved)
        for name, field in self.fields.items():
            # One event per field, with that field alone: gathering a whole form takes a tenth of a second.
            more: dict[str, Any] = {"inputs": [field], "trigger_mode": "always_last", **QUIET}
            looking = more | {"inputs": [field, self.problems], "outputs": self.problems}
            if isinstance(field, gr.Textbox):
                field.input(partial(self._typed, name), **more)
                field.blur(partial(self._left, name), **looking)
            else:  # what is chosen is whole at once
                field.input(partial(self._left, name), **looking)
        if issubclass(self.config_class, PictureFolder) and "dataset_config" in self.fields:
            names = self.fields.keys() & set(self.config_class.folder_options())
            told = {name: self.fields[name] for name in sorted(names)}
            file = self.fields["dataset_config"]
            said = partial(self._said_by_file, told)
            file.change(said, [file], list(told.values()), **QUIET)
            page.first(lambda: said(self.drafts.load(self.name).get("dataset_config")))
        if self.extras:
            save = lambda data: self.drafts.update(self.name, self.raw(data))  # noqa: E731 - gradio wants a function
            gr.on(
                [extra.input for extra in self.extras],
                save,
                set(self.extras),
                trigger_mode="always_last",
                **QUIET,
            )

    def _said_by_file(self, told: Mapping[str, Component], path: Raw) -> Updates:
        """Beside a dataset file the options of a plain folder have no effect: their labels say so."""
        known = options_of(self.config_class)
        instead = ", set in the dataset file" if str(path or "").strip() else ""
        return {field: gr.update(label=_label(known[name]) + instead) for name, field in told.items()}

    def _typed(self, name: str, value: Raw) -> None:
        self.drafts.update(self.name, self._unsecret({name: value}))

    def _left(self, name: str, value: Raw, listed: str | None) -> str:
        """Errors of single fields while a form is filled in, and what does nothing; a list that is shown is
        brought up to date."""
        self._typed(name, value)
        contents = {**self.drafts.load(self.name), name: value}
        listed_whole = "zg-notice" in (listed or "")
        config, problems = each_field(self.config_class, self._said(contents))
        # A whole list also has what the fields need together.
        problems = self._problems_of(contents) if listed_whole else with_look(config, problems)[0]
        return self._listed(problems, idle_options(config), quiet=not listed_whole)

    def _problems_of(self, contents: Mapping[str, Raw]) -> list[Problem]:
        try:
            self.config_of(contents)
        except UserError as error:
            return list(error.problems)
        return []

    def keep(self, contents: Mapping[str, Raw], *, rest: bool = False) -> None:
        """Save contents that were put into the form by the program."""
        shown = {**values.defaults(self.config_class), **contents} if rest else contents
        self.drafts.update(self.name, self._unsecret(shown))

    def _unsecret(self, contents: Mapping[str, Raw]) -> dict[str, Raw]:
        known = options_of(self.config_class)
        return {
            name: value for name, value in contents.items() if name in known and not known[name].extra.secret
        }

    # ---- command line -----------------------------------------------------------------------------------

    def command_line(self, data: Mapping[Component, Any]) -> str:
        """The same run from a terminal: every option that differs from its default."""
        words = ["python", "-m", "zimage_gui", self.config_class.command]
        for name, value in self._said(self.raw(data)).items():
            parts = value if isinstance(value, list | tuple) else [value]
            shown = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
            words += [f"--{name}", *(shown or [""])]
        return shlex.join(words)


def guarded(
    form: Form, action: Callable[[Mapping[Component, Any]], Updates], stale: Updates | None = None
) -> Callable[[Mapping[Component, Any]], Updates]:
    """A handler whose UserError appears beside the fields, and whose success removes earlier errors.

    stale: what an error puts in the place of an earlier answer that is no longer true.
    """

    def handle(data: Mapping[Component, Any]) -> Updates:
        try:
            done = action(data)
        except UserError as error:
            return merged(form.complain(error), stale or {})
        return merged(form.clear(), done)

    return handle


def merged(*parts: Updates) -> Updates:
    """Updates of several sources; two updates of one component become one, the later value of a property
    winning."""
    whole: Updates = {}
    for part in parts:
        for component, update in part.items():
            known = whole.get(component)
            both = isinstance(known, dict) and isinstance(update, dict)
            whole[component] = {**(known or {}), **update} if both else update
    return whole


def beside(problem: Problem) -> str:
    """The sentence without the option's name, which the label above the field already says."""
    sentence = problem.sentence()
    head = f"{problem.option} = " if problem.value else f"{problem.option}: "
    return sentence.removeprefix(head)


def _help(option: Option) -> str:
    return f"{option.help} {option.when}".rstrip()


def _label(option: Option) -> str:
    unit = option.extra.unit
    return f"{option.label} ({unit})" if unit and unit not in option.label.casefold() else option.label


def _long(option: Option) -> bool:
    return option.many or option.name in LONG_TEXTS


def _classes(option: Option) -> list[str]:
    wide = ["zg-wide"] if option.kind == "path" or _long(option) else []
    return ["zg-field", f"zg-{option.kind}", *wide, *(["zg-advanced"] if option.advanced else [])]


def browse_button(elem_id: str) -> gr.Button:
    """A small button inside a path field that opens the folder browser for it."""
    button = gr.Button("Browse", size="sm", render=False)
    button.click(None, js=f"() => window.zgBrowse({elem_id!r})", **QUIET)
    return button


def _widget(option: Option, form: str, changes: Mapping[str, Any]) -> Component:
    """The gradio component of one option. Its elem_id carries the option's name for the tooltip and the
    search."""
    common: dict[str, Any] = {
        "label": _label(option),
        "info": _help(option),
        "value": values.to_widget(option, option.default),
        "elem_id": f"{form}--{option.name}",
        "elem_classes": _classes(option),
        "interactive": True,
        **changes,
    }
    if option.kind == "bool":
        return gr.Checkbox(**common, min_width=160)
    if option.kind == "choice" and not option.many:
        choices: list[tuple[str, str | None]] = [(choice, choice) for choice in option.choices]
        if option.optional:
            choices.insert(0, ("–", None))
        return gr.Dropdown(**{"choices": choices, "min_width": 160, **common})
    lines = 2 if _long(option) else 1
    size: dict[str, Any] = {"lines": lines, "max_lines": 12 if lines > 1 else 1, "min_width": 160}
    if option.extra.secret:
        size |= {"type": "password"}
    if option.kind == "path" and not option.many:
        size |= {"buttons": [browse_button(common["elem_id"])]}
    return gr.Textbox(
        **{**size, **common}, html_attributes=gr.InputHTMLAttributes(spellcheck=option.name in LONG_TEXTS)
    )
