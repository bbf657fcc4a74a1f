"""Classifies the wording of a request: it has its own topic, only asks to continue, or starts with an instruction.

The functions use word lists, in English with the most common forms of other languages, and read a bounded number of
characters.
"""

from __future__ import annotations

import math
import re

MAX_CHARACTERS = 600
"""Characters that these functions read. A longer text is not a nudge."""
MIN_TOPIC_WORDS = 2
"""Smallest number of content words with which a request is understood without its context."""
MIN_UNSPACED_CHARACTERS = 5
"""Shortest run of Chinese, Japanese or Thai characters that counts as several words."""
UNSPACED_WORD_CHARACTERS = 3
"""Characters of such a run that count as one word."""
MAX_OWN_WORDS = 4
"""Largest number of content words that count towards a new topic."""
TOPIC_SCORE = 5.17
"""Score above which a request opens a topic: a probability of 0.7."""
MAX_COURTESY_CHARACTERS = 80
MIN_LONG_NUDGE_WORDS = 12
MAX_FOREIGN_SHARE = 0.12
"""Largest share of words outside the lists with which a longer message is still a nudge."""

_WORD = re.compile(r"[^\W\d_]+")
_FORMULA = re.compile(r"\w\s{0,2}[=+*/^]\s{0,2}\d|\d\s{0,2}[-+*/^=]\s{0,2}\w")
_NAME = re.compile(r"\d|(?<=[a-z,;:] )[A-Z][a-z]+|(?<=[a-z] )[A-Z]{2,}")
"""A number, or a word with a capital letter within a sentence."""
_UNSPACED = re.compile(rf"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]{{{MIN_UNSPACED_CHARACTERS}}}")


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS = words_of("""
    a about above after again all also am an and another any anything are as at back be because been before being below
    best better between both but by can cannot could d did do does doing don done down each either else end even every
    everything few first for from further get give given go going good got had has have having he help her here him his
    how i if in into is isn it its itself just keep last later least less let like ll look lot m make making many may
    maybe me mine more most much must my need needs never new next no none nor not nothing now of off ok okay on once
    one only or other others our out over own part please put rather re really right s same second see shall she should
    show since so some something still such sure t take tell than thank thanks that the their them then there these they
    thing things third this those though through till to too try two under until up us use used using ve very via want
    wants was way we well were what when where whether which while who whom whose why will with without won work works
    working would wrong yes yet you your yours
    """)
"""Function words and other words without content, as in "what is wrong with this?"."""

_HANDLING_WORDS = words_of("""
    add alternative alternatives answer argument attached bit bullet bullets certain change changes check checklist
    choose clear code common complete consider content contents correct correctly cost data describe detail details
    document documents everything exactly example examples exception exceptions explain explanation file files five fix
    fixed following format four half happen happens hello hey hi idea improve input issue line lines long longer mean
    means message mistakes negative opposite option output paragraph paste pasted point points preferably problem prompt
    question questions quickly read redo repeat reply request result results return rewrite rule run say says sentence
    short shorten shorter simple simpler solve somebody someone source sources step steps strongest summarise summarize
    summary table task tasks text think three total twice understand update usually version word words write
    """)
"""Words for handling whatever the context is about, as in "summarise the following text"."""

_PROCESS_WORDS = words_of("""
    abort action actions agent all allowed already approach appropriate ask asked asking assistance assume automatically
    autonomously available blocked call called calling calls carry carrying claim command commands completed completely
    completing conclude continue continued continuing current currently decide directly empty ensure environment error
    errors execute execution failed fails fetch final finish finished finishing forget forgot function functions goal
    hand human important incomplete instead instruction instructions interaction interrupted invoke item items iteration
    limit list lists mark marked missing move note objective onward onwards parse pending plan previous proceed
    proceeding progress provide reached reason receive received recently remaining remember reminder remind requested
    required resume retry solved state status stop stopped stopping stuck submit suitable tool tools track tracking turn
    turns todo todos unfinished updated updating user valid verify wait yourself alright begin cool fine great perfect
    start yeah yep yup weiter mach fortfahren bitte nochmal ja genau danke continuez continuer continua continue vas oui
    encore merci sigue seguir adelante si gracias prosegui avanti ancora grazie continuar siga sim obrigado verder ga ja
    doorgaan 继续 请继续 好的 是的 谢谢 続けて はい 続き 계속 네 продолжай продолжайте дальше да спасибо
    """)
"""Words about carrying on with a task, as a user or an agent's harness writes them between two steps."""

_ANSWER_WORDS = words_of("""
    abbreviation abstract advantages advice advocate agree almost altro always ambiguous analogy andere anderes
    angle apologise apply argue auch autre autrement average background ballpark based basically basics beginner
    beginners beginning beispiel big bigger bold boring boss breve brief briefly brutally budget capital case
    clarify clearer cliché close colleague combine commas compare comprends compromise concentrate concrete
    conditions confident confused confusing connects cons context contradict contradicts convincing copy
    correction corto court critic curto cut darker das decided deeper define depends depth der deuxième die
    difference different differently difficult direct disadvantages disagree disagrees disclaimer downsides drags
    drop du earlier easier effort ein eine einfacher ejemplo elaborate elsewhere emoji emojis ending enough
    enthusiasm entiendo esempio essential essentials est estimate everyday exact except exemple expand expert far
    favor figures fit flow focus formal formatting former fresh friend friendlier front funnier funny geht genauer
    gist graag halfway heading headings helpful helps highlight honest honestly hurry hype ideas idiot illustrate
    imagine including informal interesting intro introduction ist je joke kannst key kidding korter kürzer la
    latter le learn leave lecture left length les letter lighter little lost made mais mal match matter matters
    max meant meglio mejor melhor mentioned merge metaphor middle minimum minute mistake más ne necessary nice
    nicht noch number numbers often oops opening opinion order original otro page pages parte partie pas people
    perfecto perspective pick picture più plain plus pode polish por possible pourquoi practice preamble precise
    prefer pros puedes puoi quick quiz quotes qué readable reading realistically reasoning recap recommend
    recommendation reicht related repeating rephrase replace rest revert revisit robotic roughly round said saying
    send serious sicher side simplify skip slow slowly somewhere sound sounds special specific spice split stiff
    stronger style suggestion suggestions suppose surprise swap tad takeaway technical term terms theory tighten
    time times tips title told tone top trick tried trop typo un unclear undo une useless vague verstehe von vorne
    warum watch weak weakest wording worse worst worth zoom última ещё короче пожалуйста почему пример
    """)
"""Words about an answer: its tone, length, parts and alternatives, as in "make the ending less formal"."""

_INSTRUCTIONS = words_of("""
    add analyse analyze answer arrange brainstorm build calculate change check classify clean compare complete compose
    compute continue convert correct count create critique debug define delete deploy derive describe design detect
    determine develop discuss draft draw edit evaluate examine expand explain extend extract find fix format generate
    give highlight identify implement improve interpret label list make match name merge move optimise optimize outline
    paraphrase plan polish predict prepare prove proofread propose provide rank rate read recommend refactor remove
    rename rephrase replace review revise rewrite run roleplay score shorten show simplify solve sort split state
    suggest summarise summarize teach tell transcribe transform translate turn use verify write übersetze übersetz
    schreibe schreib erkläre fasse korrigiere traduis traduisez traduire écris écrivez explique résume corrige traduce
    traduzca traducir escribe escriba explica resume traduci scrivi spiega riassumi traduza escreva explique resuma
    vertaal schrijf 翻译 переведи напиши
    """)
"""First words of an instruction, after courtesies."""

_TRANSLATIONS = words_of(
    "translate übersetze übersetz traduis traduisez traduire traduce traduzca traducir traduci traduza vertaal"
)
_POINTERS = words_of("this that it these those them")
_REFERENCES = _POINTERS | words_of("""
    its one ones other others same again more less first second third last previous above before former latter
    """)
"""Words that refer to what was said before."""
_COURTESIES = words_of("please can could would will you i want need to help me kindly now hey hi hello bitte")
_TOPICLESS = FUNCTION_WORDS | _HANDLING_WORDS
_NUDGING = _TOPICLESS | _PROCESS_WORDS
_CONTEXTUAL = _NUDGING | _ANSWER_WORDS


def has_topic(text: str) -> bool:
    """True if a request is understood without its context: two content words, a formula, or a translation."""
    if is_translation(text):
        return True
    text = text[:MAX_CHARACTERS].lower()
    words = set(_WORD.findall(text)) - _NUDGING
    return len(words) >= MIN_TOPIC_WORDS or any(found.search(text) for found in (_FORMULA, _UNSPACED))


def opens_topic(text: str, general: float) -> bool:
    """True if the newest request of a conversation has its own topic, so that its context does not matter.

    `general` is the probability of the category `general` for the request alone. The weights are those of a logistic
    regression on conversations whose topic changed or did not (docs/experiments/routed-text.md).
    """
    text = text[:MAX_CHARACTERS]
    words = set(_WORD.findall(text.lower()))
    if not words:
        return False
    own = sum(
        max(1, len(word) // UNSPACED_WORD_CHARACTERS) if _UNSPACED.match(word) else 1 for word in words - _CONTEXTUAL
    )
    has_name = any(found[0].lower() not in _CONTEXTUAL for found in _NAME.finditer(text))
    references = len(words & _REFERENCES) / len(words)
    bounded = min(max(general, 0.001), 0.999)
    score = 2.05 * min(own, MAX_OWN_WORDS) + 2.75 * has_name - 5.3 * references
    return score - 0.17 * math.log(bounded / (1 - bounded)) > TOPIC_SCORE


def refers_to_context(text: str) -> bool:
    """True if a short request is about something that it does not name, as in "clean up the imports"."""
    words = set(_WORD.findall(text[:MAX_CHARACTERS].lower()))
    return not words.isdisjoint(_POINTERS) or ("the" in words and is_instruction(text))


def is_nudge(text: str) -> bool:
    """True if a message only asks to continue the task at hand."""
    if len(text) > MAX_CHARACTERS:
        return False
    words = _WORD.findall(text.lower())
    foreign = sum(word not in _NUDGING for word in words)
    return foreign == 0 or (len(words) >= MIN_LONG_NUDGE_WORDS and foreign <= MAX_FOREIGN_SHARE * len(words))


def is_translation(text: str) -> bool:
    """True if a text starts with the instruction to translate, after courtesies."""
    return _instruction(text) in _TRANSLATIONS


def is_instruction(text: str) -> bool:
    """True if a text starts with an instruction, after courtesies."""
    return bool(_instruction(text))


def _instruction(text: str) -> str:
    """Return the first word after courtesies if it is an instruction, or else an empty text."""
    words = _WORD.findall(text[:MAX_COURTESY_CHARACTERS].lower())
    first = next((word for word in words if word not in _COURTESIES), "")
    return first if first in _INSTRUCTIONS and words[0] != "to" else ""
