"""This module alone decides what a location of data is, and what part of it must not be written or shown."""

import os
import re
import unicodedata
from urllib.parse import urlsplit

SCHEMES = ('http', 'https', 'pipe', 'gs', 'hf')
MASK = '***'
LONGEST = 8192    # characters
HUB = re.compile(r'hf://(?:(?P<kind>dataset|space)s/)?(?P<repository>(?!(?:datasets|spaces)/)[\w.-]+/[\w.-]+)'
                 r'(?:@(?P<revision>[\w.-]+))?(?P<folder>(?:/[\w.=-]+)*)/?', re.ASCII)
_BUCKET = re.compile(r'gs://[A-Za-z0-9][A-Za-z0-9._=/-]*')
_URL = re.compile(r"https?://[\w.~:/?\[\]@!$&'()*+,;=%-]+", re.ASCII)
_HOST = re.compile(r'[A-Za-z0-9._-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*')


def scheme_of(location: str) -> str:
    """Return '' for a folder, else one of SCHEMES. Raises ValueError for all else: nothing is guessed about odd ones."""
    problem = _problem(location)
    if problem:
        raise ValueError(f'{shown(location)}: {problem}')
    return _written_scheme(location) or ''


def is_location(value: str) -> str:
    """Return `value`. Raises ValueError unless it is a location; the message leaves it to the caller to name the value."""
    problem = _problem(value)
    if problem:
        raise ValueError(problem)
    return value


def is_folder(value: str) -> str:
    """Return `value`. Raises ValueError unless it is a folder's path; the message leaves it to the caller to name the value."""
    if _written_scheme(is_location(value)):
        raise ValueError('it must be the path of a folder')
    return value


def _written_scheme(location: str) -> str | None:
    """Return what stands before the first colon if it could be a scheme: it begins with a letter and has no / in it."""
    scheme, colon, _ = location.partition(':')
    return scheme if colon and '/' not in scheme and scheme.strip()[:1].isalpha() else None


def _problem(location: str) -> str | None:
    """Return why it is no location and what to write instead, or None if it is one."""
    if not location.strip():
        return 'it is empty; give a folder, https://HOST/FOLDER, or pipe:COMMAND with {} for the file name'
    if len(location) > LONGEST:
        return f'it has {len(location)} characters, of {LONGEST} that a location may have; put a long command into a file'
    if any(unicodedata.category(letter) in ('Cc', 'Zl', 'Zp') for letter in location):
        return 'there is a control character or a line break in it; leave that out'
    scheme = _written_scheme(location)
    if scheme is None:
        return _problem_of_folder(location)
    return _PROBLEMS[scheme](location) if scheme in _PROBLEMS else (
        f'no reader for {scheme!r}, only for folders (./NAME of one with a colon in its name), and, in small letters, http:, '
        'https:, gs: and hf:; use pipe:COMMAND with {} for the file name')


def _problem_of_folder(location: str) -> str | None:
    if location.startswith('~'):   # a folder of that name is hardly meant
        return (f'~ is left as it is, here and by the shell; write the whole path, e.g. {os.path.expanduser("~")}/shards, or '
                './~ for a folder of that name')
    return None


def _problem_of_pipe(location: str) -> str | None:
    if '{}' not in location:
        return 'the command has no {} to stand for the file name; write e.g. pipe:ssh host cat /data/{}'
    return None


def _problem_of_url(location: str) -> str | None:
    try:
        parts = urlsplit(location)
        whole = _URL.fullmatch(location) and _HOST.fullmatch(parts.hostname or '') and parts.port != 0
    except ValueError:    # it has brackets without an address, or a port that is no number
        whole = False
    if not whole:
        return 'it is no URL of a folder; write https://HOST/FOLDER, with other characters as %20, %23, %40 ...'
    return None


def _problem_of_bucket(location: str) -> str | None:
    if not _BUCKET.fullmatch(location):   # it becomes a word in a command
        return 'after gs:// only letters, digits and . _ = / - are taken; write gs://BUCKET/FOLDER'
    return None


def _problem_of_hub(location: str) -> str | None:
    if not HUB.fullmatch(location):
        return ('only letters, digits and . _ = - are taken in names; write hf://datasets/OWNER/NAME or '
                'hf://datasets/OWNER/NAME@REVISION/FOLDER')
    return None


_PROBLEMS = {'http': _problem_of_url, 'https': _problem_of_url, 'pipe': _problem_of_pipe, 'gs': _problem_of_bucket,
             'hf': _problem_of_hub}


def masked(location: str) -> str:
    """Return the location as it may be written and shown, with *** for passwords and tokens. A folder's path stays as it is."""
    return location if _written_scheme(location) is None else hide_secrets(location)


def shown(location: str) -> str:
    """Return the location for messages: masked, in quotes, on one line, and not too long."""
    text = repr(masked(location[:LONGEST]))
    return text if len(text) <= 300 else f'{text[:300]}...'


def is_masked(location: str) -> bool:
    """Return whether something was masked in it that only its owner can give."""
    return _written_scheme(location) is not None and MASK in location


def lacks_only_password(location: str) -> bool:
    """Return whether .netrc or IMAGO_DATA_PASSWORD may give what is missing in a masked location."""
    return scheme_of(location).startswith('http') and MASK not in location.replace(f':{MASK}@', '@', 1)


def check_whole(location: str) -> None:
    """Raise ValueError for a masked location whose secret only its owner can give."""
    if is_masked(location) and not lacks_only_password(location):
        raise ValueError(f'{shown(location)}: it was masked when it was written, as no file keeps a secret; give the whole '
                         'location')


def could_hold_secrets(text: str) -> bool:
    """Return whether a written configuration names a location with a secret, or one in which a secret might go unseen."""
    return MASK in text or re.search(r'\bpipe:|https?://[^\s\'"]*[?@]', text) is not None


def hide_secrets(text: str) -> str:
    """Return the text with *** for all passwords and tokens that are recognised. $NAME in a command stays: it is no secret."""
    commands = 'pipe:' in text

    def hide(match: re.Match) -> str:
        if commands and _REFERENCE.fullmatch(match['value'].strip('\'"')):
            return match[0]
        return match['kept'] + MASK

    for pattern in _SECRETS:
        text = pattern.sub(hide, text)
    return text


_REFERENCE = re.compile(r'\$(?:\w+|\{\w+\}|\(.*\))')
_VALUE = r'''(?P<value>'[^']*'|"[^"]*"|\$\([^)]*\)|[^\s'"&;|]+)'''
_WORD = r'''(?P<value>\$\([^)]*\)|[^\s'"]+)'''
_USER = r'(?P<kept>(?:^|(?<=\s))(?:-[a-z]*u|--user|--proxy-user)[\s=]*'
_NAME = (r'(?:[\w.-]*(?:token|secret|passw|signature|credential|api[_.-]?key|access[_.-]?key)[\w.-]*|x-(?:amz|goog)-[\w.-]*|'
         r'[\w.-]*[_-]key|key|sig|pwd|pass|auth)')
_SECRETS = [re.compile(pattern, re.IGNORECASE) for pattern in (
    r'(?P<kept>://[^\s/?#@:]*:)(?P<value>[^\s/?#]*)(?=@)',                          # https://user:password@host
    r'(?P<kept>://(?!\[)[^\s/?#@:]*:)(?!\d*[/?#]|[^\s/?#]*@)(?P<value>\S*)(?=@)',   # the same, with / in the password
    r'(?P<kept>://)(?P<value>[^\s/?#@:]{20,})(?=@)',                                # https://token@host
    r'(?<![\w/:.@+-])(?P<kept>[\w.+-]+:)(?!//)(?P<value>[^\s/@]+)(?=@)',            # user:password@host
    _USER + r'''(?P<quote>["'])[^:'"]*:)(?P<value>.+?)(?=(?P=quote))''',            # -u "user:password"
    _USER + rf'''[^\s:'"]*:){_WORD}''',
    rf'(?P<kept>\bsshpass\s+-p\s*){_VALUE}',
    rf'(?P<kept>\bauthorization:\s*(?:(?:basic|bearer|digest|token)\s+)?)(?!(?:basic|bearer|digest|token)\s){_WORD}',
    rf'(?P<kept>\bbearer\s+){_WORD}',
    rf'(?P<kept>\b[\w-]*(?:token|key|secret|password):\s+){_WORD}',                 # another header
    rf'(?P<kept>--[\w-]*(?:token|key|secret|password)\s+){_VALUE}',
    rf'(?P<kept>(?<![\w.-]){_NAME}=){_VALUE}')]                                     # in a query, an option, the environment
