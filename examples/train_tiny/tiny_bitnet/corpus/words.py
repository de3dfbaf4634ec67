"""Word lists of the corpus that carry no facts: names, places, things, syllables, scripts."""

from __future__ import annotations


def listed(text: str) -> list[str]:
    """Split a readable list of words."""
    return text.split()


ONSETS = listed(
    "b c d f g h j k l m n p r s t v w z br cr dr fr gr pr tr bl cl fl gl pl sl st sk sp sm sn sh ch th qu"
)
VOWELS = listed("a e i o u a e i o ai ea oo ou ie y")
CODAS = listed("n r l s t m d k ck ll nd st ng x p")
IDENTIFIER_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@/"

# Code point ranges: Cyrillic, Greek, Han (twice as likely), kana, Hangul, Hebrew, Arabic, Latin-1, emoji.
SCRIPTS = [
    (0x430, 0x44F), (0x410, 0x42F), (0x3B1, 0x3C9), (0x4E00, 0x6FFF), (0x4E00, 0x6FFF), (0x3042, 0x3090),
    (0x30A2, 0x30F0), (0xAC00, 0xB3FF), (0x5D0, 0x5EA), (0x627, 0x64A), (0xE0, 0xFC), (0x1F600, 0x1F64F),
]  # fmt: skip

FIRST_NAMES = listed(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nora Oscar Paula Quinn Rosa Sam "
    "Tina Uma Victor Wendy Xena Yusuf Zoe Alice Bob Carol Dan Eve Frank Gina Hugo Ivan Julia Karl Laura "
    "Mike Nina Otto Peter Ruth Simon Tom Ursula Vera Will Yara Adam Bella Chris Diana Eric Fiona George "
    "Helen Ian Jane Kevin Lucy Mark Nancy Olivia Paul Rachel Steve Tara Amir Chen Fatima Hiro Ingrid Jose "
    "Kofi Lars Mei Omar Priya Raj Sofia Tariq Wei John Mary James Linda Robert Sarah Thomas Lisa Daniel "
    "Marta Max Sophie"
)

CITIES = listed(
    "Lyon Nice Hamburg Munich Cologne Milan Naples Turin Venice Seville Valencia Porto Osaka Kyoto Nagoya "
    "Shanghai Mumbai Delhi Chennai Boston Chicago Dallas Denver Seattle Austin Miami Houston Phoenix Toronto "
    "Montreal Vancouver Sydney Melbourne Perth Auckland Istanbul Izmir Krakow Gdansk Graz Linz Bergen Malmo "
    "Geneva Zurich Basel Ghent Utrecht Leeds Bristol Glasgow Cork Galway Recife Salvador Cordoba Medellin "
    "Cusco Lagos Kano Mombasa Durban Casablanca Paris Berlin Rome Madrid Tokyo Oslo Vienna Lisbon London"
)
CITY_PREFIXES = listed("San New Port Los Fort Lake")

NOUNS = listed(
    "apple bread cheese book lamp chair table phone laptop camera bike car train boat shoes hat coat shirt "
    "watch ring pen pencil paper map key box bag cup plate knife fork spoon bottle clock mirror brush soap "
    "towel pillow blanket guitar piano drum violin ball kite doll puzzle robot tent rope ladder hammer nail "
    "saw paint brick stone wood glass metal plastic coffee tea milk juice water sugar salt rice pasta soup "
    "salad pizza cake cookie honey lemon orange banana grape tomato potato onion carrot garden forest river "
    "lake beach island bridge tower castle museum library school office market station airport hotel hospital"
)
ADJECTIVES = listed(
    "red blue green yellow black white small big old new cheap fast quiet warm cold soft round wooden modern "
    "simple"
)
ANIMALS = listed(
    "fox cat dog rabbit bear owl mouse duck wolf frog horse lion turtle hedgehog squirrel goat pig bird"
)
JOBS = listed(
    "teacher doctor nurse baker farmer pilot painter singer writer lawyer engineer plumber carpenter chef "
    "driver gardener librarian programmer scientist tailor"
)
COLORS = listed("red blue green yellow black white pink purple orange brown")

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "You are a helpful AI assistant. Be concise.",
    "Be polite and short.",
    "You answer questions.",
    "You are a tiny assistant running on a CPU.",
    "You are a helpful AI assistant.",
    "You are a knowledgeable assistant. Answer in one sentence.",
    "Be brief.",
    "You are an assistant. Answer the question of the user.",
]
