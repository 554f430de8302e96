"""Automata made by hand for the tests of drawing: a system, a loop, a hostile and a large one."""

from __future__ import annotations

from circuits.automaton import EdgeToken, Example, FeatureAutomaton, State, Transition

HOSTILE = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(2)>',
    "]]>",
    "-->",
    "&amp;",
    "&",
    "\\\\",
    "'\"",
    "\\n",
    "\\N",
    "<B>x</B>",
    "{a|b}",
    "<f0>|",
    "\\x80",
    "\\u{202e}",
    "汉字",
    "தமிழ்",
    "العربية",
    "%s$(id)`id`",
)


def example(text: str, focus: int, **values: float) -> Example:
    """Give an example from tokens joined by |; `t3=0.5` sets the value of token 3."""
    tokens = tuple(text.split("|"))
    return Example(tokens, tuple(values.get(f"t{at}", 0.0) for at in range(len(tokens))), focus)


def tokens(*pairs: tuple[str, float]) -> tuple[EdgeToken, ...]:
    return tuple(EdgeToken(at + 10, text, share) for at, (text, share) in enumerate(pairs))


def html_system() -> FeatureAutomaton:
    states = (
        State(0, "tag opens <", (20, 311), (example("the| text|.| <|a| href", 3, t3=1.0),)),
        State(1, "tag name", (0,), (example(".| <|a| href|=", 2, t2=0.7, t1=0.2),)),
        State(2, "attribute name", (408, 12), (example("<|a| href|=|/docs", 2, t2=0.9),)),
        State(3, "text after >", (30, 494), (example('="|item|">|First| entry', 3, t2=0.5, t3=1),)),
    )
    steps = (
        Transition(0, 1, 0.91, tokens(("div", 0.6), ("a", 0.4)), "div a li", 910),
        Transition(0, "EXIT", 0.09, (), "", 90),
        Transition(1, 2, 0.38, tokens((" class", 1.0)), " class", 380, causal=0.25),
        Transition(1, 3, 0.47, tokens((">", 1.0)), ">", 470),
        Transition(1, "EXIT", 0.15, (), "", 150),
        Transition(2, 3, 0.97, tokens(("=", 1.0)), "=", 970),
        Transition(2, 0, 0.01, tokens(("<", 1.0)), "weak", 10),
        Transition(3, 3, 0.62, tokens((" the", 1.0)), "words", 620),
        Transition(3, 0, 0.31, tokens(("<", 1.0)), "<", 310),
    )
    scores: dict[str, float | int | None] = {
        "rank": 1,
        "n_states": 4,
        "retention": 0.87,
        "held_out_retention": 0.86,
        "bits_saved": None,
    }
    return FeatureAutomaton(
        "html-tags", 'HTML: <name attribute="value">', "system", scores, states, steps, {"run": "r"}
    )


def loop() -> FeatureAutomaton:
    state = State(7, "base64", (45,), (example("Qg|zA|7f|Xk", 2, t1=0.6, t2=1.0),))
    step = Transition(7, 7, 0.83, tokens(("Qg", 1.0)), "[A-Za-z0-9]{2}", 83)
    return FeatureAutomaton("base64", "base64", "loop", {"retention": 0.83}, (state,), (step,))


def hostile() -> FeatureAutomaton:
    """Give an automaton whose every word is a token that some format gives a meaning."""
    n = len(HOSTILE)
    states = tuple(
        State(
            at,
            HOSTILE[at],
            (at,),
            (Example((HOSTILE[at], HOSTILE[(at + 1) % n]), (1.0, 0.2), 0),),
        )
        for at in range(n)
    )
    steps = tuple(
        Transition(at, (at + 1) % n, 0.5, tokens((HOSTILE[at], 1.0)), HOSTILE[at], 50)
        for at in range(n)
    )
    return FeatureAutomaton(
        "hostile",
        "</title><script>alert(3)</script>",
        "chain",
        {"<b>odd</b>": 1.0},
        states,
        steps,
        {"</script><script>alert(4)</script>": "-->"},
    )


def large(n_states: int, n_steps: int) -> FeatureAutomaton:
    """Give an automaton of any size, the same each time."""
    states = tuple(State(at, f"state {at}", (at,)) for at in range(n_states))
    steps = tuple(
        Transition(
            at * 7919 % n_states,
            at * 104729 % n_states if at % 3 else (at * 7919 + 1) % n_states,
            (at % 97) / 97 / max(1, n_steps // n_states + 1),
            (),
            f"t{at}",
            at % 1000,
        )
        for at in range(n_steps)
    )
    return FeatureAutomaton("large", "large", "system", {}, states, steps)
