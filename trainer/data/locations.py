"""What a location of data is, decided here for all of the code; and what of it must not be written or shown."""

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
    """'' of a folder, else one of SCHEMES. ValueError for all else: nobody guesses what an odd one might mean."""
    problem = _problem(location)
    if problem:
        raise ValueError(f'{shown(location)}: {problem}')
    return _written_scheme(location) or ''


def is_location(value: str) -> str:
    """`value` itself. ValueError, which leaves it to the caller to name the value, unless it is a location."""
    problem = _problem(value)
    if problem:
        raise ValueError(problem)
    return value


def is_folder(value: str) -> str:
    """`value` itself. ValueError, which leaves it to the caller to name the value, unless it is the path of a folder."""
    if _written_scheme(is_location(value)):
        raise ValueError('it must be the path of a folder')
    return value


def _written_scheme(location: str) -> str | None:
    """What stands before a colon, if that could be taken for a scheme: it begins with a letter, and no / is in it."""
    scheme, colon, _ = location.partition(':')
    return scheme if colon and '/' not in scheme and scheme.strip()[:1].isalpha() else None


def _problem(location: str) -> str | None:
    """Why it is no location, and what to write instead."""
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


def _problem_of_pipe(location: str) -> str | None:
    if '{}' not in location:
        return 'the command has no {} to stand for the file name; write e.g. pipe:ssh host cat /data/{}'


def _problem_of_url(location: str) -> str | None:
    try:
        parts = urlsplit(location)
        whole = _URL.fullmatch(location) and _HOST.fullmatch(parts.hostname or '') and parts.port != 0
    except ValueError:    # brackets without an address, or a port that is no number
        whole = False
    if not whole:
        return 'it is no URL of a folder; write https://HOST/FOLDER, with other characters as %20, %23, %40 ...'


def _problem_of_bucket(location: str) -> str | None:
    if not _BUCKET.fullmatch(location):   # it becomes a word of a command
        return 'after gs:// only letters, digits and . _ = / - are taken; write gs://BUCKET/FOLDER'


def _problem_of_hub(location: str) -> str | None:
    if not HUB.fullmatch(location):
        return ('only letters, digits and . _ = - are taken in names; write hf://datasets/OWNER/NAME or '
                'hf://datasets/OWNER/NAME@REVISION/FOLDER')


_PROBLEMS = {'http': _problem_of_url, 'https': _problem_of_url, 'pipe': _problem_of_pipe, 'gs': _problem_of_bucket,
             'hf': _problem_of_hub}


def masked(location: str) -> str:
    """The location as it may be written and shown: *** for passwords and tokens. A folder's path is shown as it is."""
    return location if _written_scheme(location) is None else hide_secrets(location)


def shown(location: str) -> str:
    """For messages: masked, in quotes, on one line, and not too long."""
    text = repr(masked(location[:LONGEST]))
    return text if len(text) <= 300 else f'{text[:300]}...'


def is_masked(location: str) -> bool:
    """Whether something was left out of it that only its owner can give."""
    return _written_scheme(location) is not None and MASK in location


def lacks_only_password(location: str) -> bool:
    """Of a masked one: whether .netrc or IMAGO_DATA_PASSWORD may give what was left out."""
    return scheme_of(location).startswith('http') and MASK not in location.replace(f':{MASK}@', '@', 1)


def check_whole(location: str) -> None:
    """ValueError for a masked location whose secret nobody else can give."""
    if is_masked(location) and not lacks_only_password(location):
        raise ValueError(f'{shown(location)}: it was masked when it was written, as no file keeps a secret; give the whole '
                         'location')


def could_hold_secrets(text: str) -> bool:
    """Whether a written configuration names a location with a secret, or one in which a secret might go unseen."""
    return MASK in text or re.search(r'\bpipe:|https?://[^\s\'"]*[?@]', text) is not None


def hide_secrets(text: str) -> str:
    """Any text with *** for the passwords and tokens that can be told. In commands $NAME is none: the shell puts it in."""
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
    rf'(?P<kept>(?<![\w.-]){_NAME}=){_VALUE}')]                                     # of a query, an option, an environment
