"""Files are read over HTTP(S), with a password where one is needed. It goes to no other host."""

import base64
import http.client
import netrc
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from imago.trainer.data.locations import HUB, MASK, masked

PASSWORD = 'IMAGO_DATA_PASSWORD'
SILENCE = 60    # seconds without a byte


def open_url(folder: str, name: str) -> BinaryIO:
    """Open file `name` of `http(s)://[user[:password]@]host/folder[?query]`.

    Raises OSError and HTTPException, and ValueError if a user's password cannot be found.
    """
    parts = urlsplit(folder)
    host = parts.netloc.rpartition('@')[2]
    url = urlunsplit(parts._replace(netloc=host, path=f'{parts.path.rstrip("/")}/{quote(name)}'))
    login = find_login(folder)
    return _open(url, login and 'Basic ' + base64.b64encode(':'.join(login).encode()).decode())


def open_hub(folder: str, name: str) -> BinaryIO:
    """Open file `name` of `hf://[datasets/]owner/name[@revision][/folder]`, with the user's token if there is one."""
    from huggingface_hub import get_token, hf_hub_url
    place, token = HUB.fullmatch(folder), get_token()
    url = hf_hub_url(place['repository'], f'{place["folder"]}/{name}'.lstrip('/'), repo_type=place['kind'],
                     revision=place['revision'], endpoint=os.environ.get('HF_ENDPOINT'))
    return _open(url, token and f'Bearer {token}')


def find_login(location: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return user and password for a location, or None where it needs none.

    They are its own, else those in .netrc for its host, else IMAGO_DATA_PASSWORD for the user that it names. The `default` of
    a .netrc is not used, as it is for any host. Raises ValueError where it names a user whose password is nowhere.
    """
    parts = urlsplit(location)
    user, password = (value and unquote(value) for value in (parts.username, parts.password))
    if password is not None and password != MASK:
        return user, password
    there, _, secret = _read_netrc().get(parts.hostname, (None, None, None))
    if there is not None and user in (None, '', there):
        return there, secret
    if user is None:
        return None
    if PASSWORD in environment:
        return user, environment[PASSWORD]
    raise ValueError(f'{masked(location)} needs the password of {user!r}; give it in the location, in the environment variable '
                     f'{PASSWORD}, or in .netrc, as: machine {parts.hostname} login {user} password ...')


def _read_netrc() -> dict[str, tuple]:
    path = Path(os.environ.get('NETRC') or Path.home() / '.netrc')
    try:
        return {host: login for host, login in netrc.netrc(path).hosts.items() if host != 'default'}
    except FileNotFoundError:
        return {}
    except (netrc.NetrcParseError, UnicodeDecodeError) as error:   # the error's text may quote a password
        raise ValueError(f'{path} cannot be read as .netrc, line {getattr(error, "lineno", "unknown")}; mend that line') from None


class _SameHost(urllib.request.HTTPRedirectHandler):
    """This follows redirects to HTTP(S) alone, and takes the password only to the host that it is for."""

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
                         newurl: str) -> urllib.request.Request | None:
        there = urlsplit(newurl)
        if there.scheme not in ('http', 'https'):
            raise OSError(f'it redirects to {there.scheme}:, which is not followed')
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        login = req.unredirected_hdrs.get('Authorization')
        if request is not None and login and (there.scheme, there.netloc) == urlsplit(req.full_url)[:2]:
            request.add_unredirected_header('Authorization', login)
        return request


def _open(url: str, login: str | None) -> BinaryIO:
    request = urllib.request.Request(url)
    if login:
        request.add_unredirected_header('Authorization', login)
    return urllib.request.build_opener(_SameHost).open(request, timeout=SILENCE)
