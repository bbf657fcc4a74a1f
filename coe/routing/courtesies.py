"""Courtesies around a request: greetings, small talk and thanks, and the polite form of an indirect request.

A sentence is a courtesy if it consists of function words and words of small talk, and is neither a question nor an
instruction, unless it addresses the reader ("can I ask you something?"). Only sentences before the request, and thanks
after it, are removed, and only if the rest says something of its own. Words decide; a topic has words outside these
lists. No search backtracks over more than MAX_SENTENCE_CHARACTERS.
"""

from __future__ import annotations

import re

from coe.routing.phrases import FUNCTION_WORDS, is_instruction, words_of

MAX_SENTENCES = 6
"""Sentences that are examined at either end."""
MAX_SENTENCE_CHARACTERS = 200
MAX_LAST_WORD_CHARACTERS = 40
"""Characters at the end of a request in which its last word is searched."""
MAX_REQUEST_CHARACTERS = 160
"""Characters of the request that are searched for a topic after its courtesies."""

_ADDRESSING = words_of("""
    apologies apologise apologize appreciate appreciated ask asking assistant bitte bonjour bonsoir bother bothering
    buenas buenos buonasera buongiorno chatgpt cheers ciao congrats congratulations danke dear disturb domanda
    excuse favor favore favors favour frage gracias grateful grazie greetings guten hallo hello help helped helping
    hey hi hiya hola hope hoping howdy kindly merci minute moin moment obrigada obrigado oi ola olá pardon pergunta
    plaît please pls plz pregunta question questions regards salut sec secs servus sincerely sorry sry thank thanks
    thx ty tysm welcome yo здравствуйте привет спасибо ありがとう こんにちは 你好 您好 请问 谢谢
    """)
"""Words that address the reader."""
_THINKING = words_of("""
    ago agree answer answers argue argued arguing argument asked came clue confused confusing curiosity curious
    debate debating disagree discussing doubt figure find forever found google googled googling guess idea
    interested know knowledge known learn learning mind opinion opinions remember remind searched searching stuck
    stumped think thinking thought thoughts trouble understand understanding wonder wondered wondering
    """)
"""Words about not knowing, as in "my friend and I could not agree on this"."""
_SETTING = words_of("""
    asks boss boyfriend brother brought buddy bus coffee colleague colleagues cousin coworker dad daughter
    desk dinner discussed evening family father friend friends girlfriend husband kid kids lunch mate meeting
    mentioned mom mother mum neighbor neighbour office partner people phone roommate school sister sitting somebody
    someone son student talked talking teacher team told wife
    """)
"""People and places of a question, which may be its topic too."""
_SMALL_TALK = words_of("""
    able absolutely actual actually advance advice afraid afternoon ah ai alright amazing anyone anytime anyway
    anywhere apparently appreciates aren attention avance awesome awful bad basic became become begin besides
    bit brief briefly brilliant bunch busy bye called care careful carefully chance chat chatbot chatting
    check chosen clear clearly close come comes coming completely complicated cool couldn couldnt couple course
    covered crazy cute day days deal definitely delighted dia didn didnt different difficult direct directly doesn
    dont dude dumb días earlier early easily easy ended enjoy enjoyed enough entirely
    especially eventually everybody everyone everywhere exact exactly excellent excited expert expertise extra
    extremely fair familiar fantastic fast favorite favourite feel feeling fellow felt final finds fine folks
    forget forgive forgot forth forward free freely friendly fun funny gave genius genuinely gets gives glad gm goes
    gone gotta great guessed guy guys habe haben hadn haha happened happening happy hasn hate hates haven heads
    hear heard heck helpful heya heyo hii hiii hm hmm hold home honest honestly hoped humor humour hurry hätte id
    ignore im important impressed impressive incredible incredibly instead interesting ive keeps kept kind
    kinda kleine kurze lately laugh leave left likely likes little live lol long longer looking looks lots love
    loved lovely luck luckily makes matter mean meant mention message messages middle might miss mistake morning
    moving nah naive newbie nice night nobody noite noob nope normally noticing obvious obviously odd oh
    opened opportunity ought owe particular pass passed patience patient perfect perfectly personally petite
    pleased pleasure plenty point politely possible possibly previous previously probably problem promise proper
    properly push putting quick quickly quite quiz random reach reaching read reading ready remains
    remembering reply request respond responding response return ridiculous rude rush savior saying seconds seem
    seems sending sense sent seriously serving short shortly shot shouldn showed sigh silly simple simply slightest
    slightly slow smart solved somehow sometimes somewhat somewhere soon sound sounds soz spare speak speaking
    specific spend spot start started starting stay step stood stop stopped straight strange strongly
    stuff stupid sudden suddenly sup super support surely surprise surprised switch
    takes taking talk talks tarde tardes task thankful thats theres theyre thrilled time times
    tiny today together tomorrow tonight took topic totally tough treat tricky true truly trust trying turned
    turning type typing u ugh uh ultimate um une unfortunately unless ur urgent useful useless usual usually vague
    wait waiting wanted warm warned wasn week weekend weekends weird weren whatever whenever wherever
    whichever willing wished wishing wonderful word words worked worth wouldn wow
    writing yesterday youre yourself
    """)
_COURTEOUS = FUNCTION_WORDS | _ADDRESSING | _THINKING | _SETTING | _SMALL_TALK
_THANKS = words_of("""
    appreciate appreciated bitte cheers danke day forward gracias grateful grazie greetings help hope know merci
    obrigada obrigado owe please pls plz regards rush sincerely soon sorry thank thanks thx ty tysm weekend спасибо
    ありがとう 谢谢
    """)
"""A courtesy after the request contains at least one of these words, such as "let me know" or "have a nice day"."""
_HOW_ARE_YOU = words_of("how are you")
_GRATITUDE = words_of("thanks thank thx ty tysm danke merci gracias obrigado obrigada grazie")
"""Words of thanks, which may be all that a message says: "thanks, it works now"."""
_REFERENCES = words_of("this it that these one")
_QUESTION_WORDS = words_of(
    "what which who whom whose how why when where whether is are was were do does did can would could should"
)

_WORD = re.compile(r"[^\W\d_]++")
_SENTENCE = re.compile(
    rf"\s*+([^\n\d\\=+*^|/_<>@#$%{{}}\[\]]{{1,{MAX_SENTENCE_CHARACTERS}}}?)"
    r"(\s?(?:[!?:;…]{1,10}|(?<=[^\W\d_]{2})\.(?!\.))[)\s]|\n)\s*+"
)
"""A sentence without digits and formulas, and what ends it."""
_GREETING = re.compile(r"\s*+((?:[^\W\d_]{1,20}[ ']){0,3}[^\W\d_]{1,20})\s?,\s++(?!world\b)", re.IGNORECASE)
"""Up to four words before a comma, except "hello, world"."""
_END_MARK = re.compile(r"[!?:;….,\n]")
"""Ends every greeting and every sentence that can be a courtesy."""
_PUNCTUATION = ".,;:!?…()[]{}\"'`*"
_SENTENCE_START = re.compile(r"[.!?…)]\s++|\n\s*+")
_NAME = re.compile(r"[A-Z][\w'-]{1,20}(?: [A-Z][\w'-]{1,20})?[.!]?\s*+")
_SIGNATURE = re.compile(rf",\s++{_NAME.pattern}\Z")
_INDIRECT = re.compile(
    r"(?:please\s++)?(?:(?:can|could|would|will)\s++(?:you|someone|anyone)(?:\s++(?:please|kindly|maybe|perhaps))?"
    r"|i\s++(?:was|am)\s++wondering\s++(?:if|whether)\s++you\s++c(?:an|ould)"
    r"|i(?:\s++would|'d)\s++(?:like|love)\s++you\s++to|i\s++(?:want|need)\s++you\s++to)\s++(?=[a-z])",
    re.IGNORECASE,
)
"""The beginning of a request in the form of a question or a wish, before its verb."""
_REPORTED = re.compile(
    r"(?:please\s++)?(?:(?:tell|show)\s++(?:me|us)|say|let\s++me\s++know|(?:do\s++you|does\s++anyone)\s++know"
    r"|i(?:\s++would|'d)\s++like\s++to\s++know|i\s++(?:want|need)\s++to\s++know|i\s++(?:was|am)\s++wondering"
    r"|i\s++wonder)\s++(?=(?:what|which|who|whom|whose|how|why|when|where|whether)\b)",
    re.IGNORECASE,
)
"""The main clause of a reported question."""
_INDIRECT_WORDS = words_of("please can could would will i tell show say let do does")
"""First words of both."""


def without_courtesies(text: str) -> str:
    """Return a request without the courtesies around it and without an indirect beginning; the text itself if none."""
    found, begin = _WORD.search(text, 0, MAX_SENTENCE_CHARACTERS), 0
    if found is not None and (first := found[0].lower()) in _COURTEOUS:  # saves many requests the search
        begin = _after_courtesies(text)
        if begin or first in _INDIRECT_WORDS:
            begin = _after_indirect(text, begin)
    end = _before_thanks(text, begin)
    if begin == 0 and end == len(text):
        return text
    kept = text[begin:end].strip()
    return kept if _says_something(kept[:MAX_REQUEST_CHARACTERS]) else text


def _after_courtesies(text: str) -> int:
    """Position after the greeting and small talk at the beginning."""
    position = 0
    for _ in range(MAX_SENTENCES):
        if not _END_MARK.search(text, position, _first_other_word(text, position)):
            break  # saves the search for a sentence, whose words would have to be courteous
        greeting = _GREETING.match(text, position)
        words = _courtesy(greeting[1]) if greeting else frozenset()
        if greeting and not words.isdisjoint(_ADDRESSING) and words.isdisjoint(_GRATITUDE):
            position = greeting.end()
            continue
        sentence = _SENTENCE.match(text, position)
        if sentence is None or not _is_courtesy(sentence[1], sentence[2]):
            break
        position = sentence.end()
    return position


def _first_other_word(text: str, position: int) -> int:
    """Position of the first word that is not courteous; the length of the text if none is near."""
    for found in _WORD.finditer(text, position, position + MAX_SENTENCE_CHARACTERS):
        if found[0].lower() not in _COURTEOUS:
            return found.start()
    return len(text)


def _is_courtesy(sentence: str, mark: str) -> bool:
    """True for a sentence of courteous words that addresses the reader, or is neither question nor instruction."""
    words = _courtesy(sentence)
    if not words or not words.isdisjoint(_ADDRESSING) or words >= _HOW_ARE_YOU:
        return bool(words)
    if mark == "\n" or "?" in mark or is_instruction(sentence) or sentence.split()[0].lower() in _QUESTION_WORDS:
        return False
    if not words.isdisjoint(_SETTING):
        return not words.isdisjoint(_THINKING) and not words.isdisjoint(_REFERENCES)
    return True


def _after_indirect(text: str, begin: int) -> int:
    """Return the position after an indirect beginning such as "could you" or "I would like to know"."""
    indirect = _INDIRECT.match(text, begin)
    at = begin if indirect is None else indirect.end()
    if reported := _REPORTED.match(text, at):
        return reported.end()
    return at if at > begin and is_instruction(text[at : at + MAX_REQUEST_CHARACTERS]) else begin


def _before_thanks(text: str, begin: int) -> int:
    """Position before the thanks and the signature at the end; the length of the text without thanks."""
    if _ends_with_topic(text):
        return len(text)
    end = found = len(text.rstrip())
    thanked = False
    for _ in range(MAX_SENTENCES):
        start = begin
        for mark in _SENTENCE_START.finditer(text, max(begin, end - MAX_SENTENCE_CHARACTERS), end - 1):
            start = mark.end()
        if start <= begin:
            break
        sentence = text[start:end]
        if "," in sentence:
            sentence = _SIGNATURE.sub("", sentence)
        if "?" not in sentence and not _courtesy(sentence).isdisjoint(_THANKS):
            thanked, found = True, start
        elif thanked or end < len(text.rstrip()) or not _NAME.fullmatch(sentence):
            break
        end = len(text[:start].rstrip())
    return found if thanked else len(text)


def _ends_with_topic(text: str) -> bool:
    """True if the last word belongs neither to thanks nor to a signature, which saves the search for them."""
    last = text[-MAX_LAST_WORD_CHARACTERS:].rsplit(None, 1)
    word = last[1].strip(_PUNCTUATION) if len(last) == 2 else ""
    return word.isalpha() and word.islower() and word not in _COURTEOUS


def _says_something(request: str) -> bool:
    return any(word not in _COURTEOUS for word in _WORD.findall(request.lower())) or any(map(str.isdigit, request))


def _courtesy(sentence: str) -> frozenset[str]:
    """The words of a sentence; empty if one of them is neither a function word nor small talk."""
    words = set()
    for found in _WORD.finditer(sentence.lower()):
        if found[0] not in _COURTEOUS:  # usually one of the first words
            return frozenset()
        words.add(found[0])
    return frozenset(words)
