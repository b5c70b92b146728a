"""A form made from a command's schema: one widget per option, grouped in sections, errors beside the field.

Knows gradio and the schema. Declares no option of its own. Bounds are not given to gradio (it would refuse a
value with a message that names no field): the schema answers for every field, in the words of the command
line.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from pydantic import ValidationError

from zimage_gui.config.build import build, field_problems
from zimage_gui.config.schema import SECTIONS, Option, Options, by_section, options_of
from zimage_gui.errors import Problem, UserError
from zimage_gui.ui import values
from zimage_gui.ui.actions import QUIET
from zimage_gui.ui.drafts import Drafts
from zimage_gui.ui.html import bullet_list, notice
from zimage_gui.ui.values import Raw

Component = Any  # gradio's components share no useful type
Updates = dict[Component, Any]

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
        self.shown_errors: Component = None

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
        """The list of problems and the memory of which fields show an error; call once after `build`."""
        self.problems = gr.HTML(visible=False, elem_id=f"{self.name}-problems")
        self.shown_errors = gr.State(frozenset())

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
        return {*self.fields.values(), *self.extras, self.shown_errors}

    def outputs(self) -> list[Component]:
        """What a handler may change through `put`, `complain` and `clear`."""
        return [
            *self.fields.values(),
            *self.extras,
            *self.sections.values(),
            self.problems,
            self.shown_errors,
        ]

    def raw(self, data: Mapping[Component, Any]) -> dict[str, Raw]:
        """Field contents by option name from a handler's inputs."""
        return {name: data[field] for name, field in self.fields.items() if field in data}

    def read(self, data: Mapping[Component, Any], **fixed: Any) -> Options:
        """The validated config; `fixed` sets hidden options. Raises UserError with every problem."""
        return self.config_of(self.raw(data), **fixed)

    def config_of(self, contents: Mapping[str, Raw], **fixed: Any) -> Options:
        """The same from field contents by name."""
        return build(self.config_class, {**values.collect(self.config_class, contents), **fixed})

    def partial(self, data: Mapping[Component, Any]) -> Options:
        """The config whose fields are each right, though what they need together may still be missing."""
        contents = values.collect(self.config_class, self.raw(data))
        try:
            return self.config_class(**contents)
        except ValidationError as error:
            raise UserError(field_problems(self.config_class, error)) from error

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

    def complain(self, error: UserError, before: Iterable[str] = ()) -> Updates:
        """Mark the fields an error names, open their sections, and list every sentence above the form."""
        updates = self.clear(before)
        named: dict[str, list[Problem]] = {}
        for problem in error.problems:
            named.setdefault(problem.option.split(".")[0], []).append(problem)
        for name, found in named.items():
            if name in self.fields:
                option = options_of(self.config_class)[name]
                words = " ".join(_beside(one) for one in found)
                updates[self.fields[name]] = gr.update(
                    info=words, elem_classes=[*_classes(option), "zg-invalid"]
                )
                if option.section in self.sections:
                    updates[self.sections[option.section]] = gr.update(open=True)
        sentences = [self._labelled(problem) for problem in error.problems]
        head = (
            "Please put this right first:"
            if len(sentences) == 1
            else f"Please put these {len(sentences)} things right first:"
        )
        text = notice(f"<b>{head}</b>{bullet_list(sentences)}", "bad", raw=True)
        return {
            **updates,
            self.problems: gr.update(value=text, visible=True),
            self.shown_errors: frozenset(named),
        }

    def clear(self, before: Iterable[str]) -> Updates:
        """Take back the errors shown by an earlier `complain`."""
        known = options_of(self.config_class)
        updates: Updates = {
            self.fields[name]: gr.update(info=_help(known[name]), elem_classes=_classes(known[name]))
            for name in before
            if name in self.fields
        }
        return {**updates, self.problems: gr.update(value="", visible=False), self.shown_errors: frozenset()}

    def _labelled(self, problem: Problem) -> str:
        option = options_of(self.config_class).get(problem.option)
        return f"{option.label}: {_beside(problem)}" if option else problem.sentence()

    # ---- events -----------------------------------------------------------------------------------------

    def wire(self, page: gr.Blocks) -> None:
        """Restore the fields when a page is opened, and keep them whenever one is changed."""
        kept = [*self.fields.values(), *self.extras]
        page.load(self.saved, outputs=kept, **QUIET)
        gr.on(
            [field.input for field in kept],
            lambda data: self.drafts.save(self.name, self._unsecret(self.raw(data))),
            inputs=set(kept),
            trigger_mode="always_last",
            **QUIET,
        )

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
        for name, value in values.collect(self.config_class, self.raw(data)).items():
            parts = value if isinstance(value, list | tuple) else [value]
            shown = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
            words += [f"--{name}", *(shown or [""])]
        return shlex.join(words)


def guarded(
    form: Form, action: Callable[[Mapping[Component, Any]], Updates]
) -> Callable[[Mapping[Component, Any]], Updates]:
    """A handler whose UserError appears beside the fields, and whose success removes earlier errors."""

    def handle(data: Mapping[Component, Any]) -> Updates:
        before: Iterable[str] = data[form.shown_errors]
        try:
            done = action(data)
        except UserError as error:
            return form.complain(error, before)
        return merged(form.clear(before), done)

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


def _beside(problem: Problem) -> str:
    """The sentence without the option's name, which the label above the field already says."""
    sentence = problem.sentence()
    head = f"{problem.option} = " if problem.value else f"{problem.option}: "
    return sentence.removeprefix(head)


def _help(option: Option) -> str:
    matters = f" Matters when {option.extra.matters}." if option.extra.matters else ""
    return option.help + matters


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
