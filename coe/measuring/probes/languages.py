"""The language of a text of a sentence or more, by its script or by its most frequent function words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

_WORD = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the and of to is in that it was for on are with as his they at be this have from or had by but not what "
        "were we when your can there an each which she do how their if will you my me i",
        "de": "der die das und ist nicht ein eine einen dem den des mit von zu auf für im sich auch es an als wir ich "
        "sie er bei nach wird oder aber war sind hat zum zur wie aus noch nur wenn über ihr sein",
        "fr": "le la les et des est un une du que qui dans pour pas sur au avec ce il elle nous vous je plus ne se son "
        "sa ses aux ont sont par mais ou où leur cette tout été c l d qu j n",
        "es": "el la los las y de que en un una es por con para no se su al lo como más pero sus le ya este sí porque "
        "esta entre cuando muy sin sobre también me hasta hay donde del son está era fue",
        "it": "il lo la gli le e di che è un una per non con del della dei delle nel nella si da sono al alla come ma "
        "più anche questo questa ha ho i dal dalla suo sua loro era ogni molto tra perché",
        "pt": "o a os as e de que em um uma é por com para não se seu sua do da dos das no na nos nas ao à mais mas "
        "como foi ele ela são está era muito também já sem eu há quando isso você pelo pela",
        "nl": "de het een en van is niet dat op te in voor met zijn aan er om ook als maar bij naar door over uit nog "
        "wordt deze dit die hij zij wij ik heeft hebben was waren kan je we ze",
        "sv": "och att det i är på som en ett för med inte av den till de har jag han hon vi om så men var sig från "
        "när kan efter under också där eller ska över mycket bara",
    }.items()
}
_BY_SCRIPT = {
    "CYRILLIC": "ru",
    "GREEK": "el",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
}
LANGUAGES = tuple(sorted({*_FUNCTION_WORDS, *_BY_SCRIPT.values()}))
"""ISO 639-1 codes of the languages that `language_of` distinguishes; Cyrillic script counts as Russian."""
_KANA_SHARE = 0.1
"""Japanese text has more kana than this, Chinese text none."""


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None where no language of LANGUAGES is likely."""
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in text if letter.isalpha())
    if not scripts:
        return None
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana > _KANA_SHARE * scripts.total():
        return "ja"
    main = scripts.most_common(1)[0][0]
    if main != "LATIN":
        return _BY_SCRIPT.get(main)
    words = [word.casefold() for word in _WORD.findall(text)]
    hits = {code: sum(word in known for word in words) for code, known in _FUNCTION_WORDS.items()}
    best = max(hits, key=lambda code: hits[code])
    return best if hits[best] else None
