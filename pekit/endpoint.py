"""A model on a server that speaks the OpenAI API: its name, address and key, refused where they can be none."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from unicodedata import category
from urllib.parse import urlsplit

from pekit.records import UserError

OPENAI_HOST = "api.openai.com"
NO_KEY = "none"  # sent to servers that want none


@dataclass(frozen=True)
class Endpoint:
    """A model on a server.

    Attributes:
        option: what names it to the user, for messages.
        model: its name (Azure: of the deployment).
        key: the secret; neither shown nor written anywhere.
        base_url: of the server; empty for OpenAI's own.
        kind: "openai" or "azure".
        api_version: of Azure's API.
        url_option: what sets the address, for messages.
        key_option: what sets the key, for messages.

    Raises:
        UserError: key or address can be none.
    """

    option: str
    model: str
    key: str = field(repr=False)
    base_url: str = ""
    kind: str = "openai"
    api_version: str = ""
    url_option: str = "the URL"
    key_option: str = "the key"

    def __post_init__(self) -> None:
        for name in ("key", "base_url"):
            object.__setattr__(self, name, getattr(self, name).strip())
        if not (self.key and self.key.isascii() and self.key.isprintable()):  # it travels in a header
            raise UserError(
                f"{self.option}: its key, of the environment or config.ini, is empty or has letters that no key has"
            )
        if self.base_url and not host_of(self.base_url):  # not shown: it may hold a password
            raise UserError(
                f"{self.option}: {self.url_option} is not of the form http://HOST:PORT/v1 (or https): mend it"
            )
        address = urlsplit(self.base_url)
        if address.username is not None or address.query or address.fragment:
            raise UserError(
                f"{self.option}: {self.url_option} holds a user name, a password or something behind ? or #: leave "
                "it out, and put the key in the environment"
            )


def host_of(url: str) -> str:
    """The host of a server's address; "" where it is not of the form ``http://HOST:PORT/PATH``."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        if ":" in host or host.replace(".", "").isdigit():
            ip_address(host)
    except ValueError:  # of the port, the numbers or the letters of the name
        return ""
    # names beyond ASCII hold letters, their marks and digits; HTTP libraries fail on any other
    lettered = host.isascii() or all(letter in "-." or category(letter)[0] in "LMN" for letter in host)
    written = parts.scheme in ("http", "https") and port != 0 and url.isprintable() and " " not in url and lettered
    return host if written else ""
