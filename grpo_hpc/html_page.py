"""What the pages of the package share: one look, light and dark, and one self-contained file without a network.

Colours of series begin with those of M. Okabe and K. Ito (Color Universal Design, 2008), sky blue and purple darker, to
be seen on white; the others are chosen so that people with any colour vision tell all of them apart.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Literal

Loads = Literal["nothing", "scripts beside", "its own server"]
"""What a page may load beyond itself: scripts in files beside it, or the answers of the server that it came from."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#5544ff", "#3d9bd6", "#8877ff", "#737373")
"""Seen on light and on dark paper."""
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2126;--dim:#5d666f;--line:#dce0e4;--raised:#f5f7f8;--accent:#005a8f;
--good:#1f7a3d;--warn:#8a5a00;--bad:#b3261e;--mark:#ffe08a}
@media (prefers-color-scheme:dark){:root{--paper:#15191d;--ink:#e4e8eb;--dim:#9aa4ad;--line:#333b43;--raised:#1e242a;
--accent:#6cb8ea;--good:#6fcf8b;--warn:#e5b454;--bad:#ff8a80;--mark:#6b5200}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:1.5em auto;padding:0 1em;color:var(--ink);
background:var(--paper)}
h1{font-size:1.5em;margin:.4em 0} h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line)}
a{color:var(--accent)} summary{cursor:pointer} :focus-visible{outline:2px solid var(--accent);outline-offset:1px}
table{border-collapse:collapse;margin:.6em 0;max-width:100%}
td,th{padding:.15em .8em;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} .dim{color:var(--dim)} .wide{overflow-x:auto}
.fits,.good{color:var(--good)} .tight,.note,.warn{color:var(--warn)} .no,.bad{color:var(--bad)}
svg{max-width:100%;height:auto} .picture{overflow-x:auto} .picture svg{max-width:none;min-width:860px}
svg text{fill:var(--ink)} svg text[fill=white]{fill:#fff}
svg text[fill=black]{fill:#000}
.key{white-space:nowrap;margin-right:1em}
"""


def ink_on(colour: str) -> str:
    """``black`` or ``white``: that of which text on ``colour`` (#rrggbb) has the higher contrast (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 else "black"


def page(title: str, body: str, *, style: str = "", script: str = "", data: str = "", loads: Loads = "nothing") -> str:
    """A page that opens from a disk and asks no network for anything, unless it ``loads`` from its server.

    Args:
        body: HTML.
        style: what this page needs beyond :data:`STYLE`.
        script: its only one; every other is refused by the page's policy, whatever its data hold.
        data: JSON for the script, which finds it in the element ``data``.
    """
    trusted = f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    trusted += " 'strict-dynamic'" if loads == "scripts beside" else ""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {trusted}"
    policy += "; connect-src 'self'" if loads == "its own server" else ""
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer">',
        '<link rel="icon" href="data:,">',  # or browsers ask for one where nothing else is answered
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>",
    ]
    end = [f'<script type="application/json" id="data">{in_script(data)}</script>'] if data else []
    end += [f"<script>{script}</script>"] if script else []
    lines = ['<!DOCTYPE html>\n<html lang="en">\n<head>', *head, "</head>\n<body>", body, *end, "</body>\n</html>\n"]
    return "\n".join(lines)


def in_script(json_text: str) -> str:
    """JSON that ends no element of a page and no line of a script, whatever its texts hold."""
    for sign in "<>&\u2028\u2029":  # they stand in texts alone, where an escape means the same
        json_text = json_text.replace(sign, f"\\u{ord(sign):04x}")
    return json_text
