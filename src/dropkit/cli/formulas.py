"""The formulas of the registry as a terminal can show them."""

import re

__all__ = ["plain"]

_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)
_SIGNS = {"odot": "*", "cdot": ".", "sim": "~", "quad": " ", ",": " ", ";": " ", " ": " "}
_SIGNS |= dict.fromkeys(("!", "left", "right", "\\"), "")
_ENDS = ("", ",", "}", "\\right", "\n", "\\\\")


def plain(latex: str) -> str:
    """Return a formula in LaTeX as lines of text, in which Greek letters and the like are spelled out."""
    text = _Reader(re.sub(r"\\(begin|end)\{aligned\}|&", "", latex).strip()).read()
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


class _Reader:
    """What is left to read of a formula."""

    def __init__(self, latex: str) -> None:
        self.tokens, self.at = _TOKEN.findall(latex), 0

    def read(self) -> str:
        """Return everything up to the end, or to the brace that closes a group."""
        text = ""
        while self._next() not in {"", "}"}:
            text += self._one(text)
        self.at += 1
        return text

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _one(self, before: str) -> str:
        """Return one sign, or a command with its arguments, given what stands in front of it."""
        sign = self._next()
        self.at += 1
        if sign == "\\frac":
            above, below = self._argument(), self._argument()
            above = f"({above})" if re.search(r" [-+] ", above) else above
            fraction = f"{above} / {f'({below})' if ' ' in below else below}"
            is_alone = before.endswith(("= ", "(", ", ")) or not before
            return fraction if is_alone and self._next() in _ENDS else f"({fraction})"
        if sign in {"\\mathrm", "\\mathcal", "\\text"}:
            return self._argument()
        if sign == "\\sqrt":
            return f"sqrt({self._argument()})"
        if sign == "\\tilde":
            return self._argument() + "'"
        if sign in {"_", "^"}:
            index = self._argument()
            return sign + (index if index.isalnum() else f"({index})" if len(index) > 1 else index)
        return _SIGNS.get(sign[1:], sign[1:]) if sign.startswith("\\") else sign

    def _argument(self) -> str:
        """Return the group, or the one sign, that a command acts on."""
        while self._next() == " ":
            self.at += 1
        if self._next() != "{":
            return self._one("")
        self.at += 1
        return self.read()
