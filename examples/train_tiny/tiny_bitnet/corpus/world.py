"""What the model is to know: families of facts, each with entries, several questions and one sentence.

`{a}` is the subject and `{b}` the value, `{A}` the subject with a capital first letter, `{na}` and `{nb}`
either one with its article ("an owl"; `{NA}`: "An owl").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .words import listed

Pairs = tuple[tuple[str, str], ...]


def _pairs(text: str) -> Pairs:
    """ "a:b|c:d" -> (("a", "b"), ("c", "d")), a readable way to write long lists."""
    return tuple((left, right) for left, right in (item.split(":") for item in text.split("|")))


@dataclass(frozen=True)
class Family:
    """Facts of one kind. `weight` is its share among all fact questions."""

    name: str
    entries: Pairs
    questions: tuple[str, ...]
    answer: str
    weight: float


CAPITALS = _pairs(
    "France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Japan:Tokyo|China:Beijing|"
    "India:New Delhi|Russia:Moscow|Egypt:Cairo|Greece:Athens|Turkey:Ankara|Poland:Warsaw|Austria:Vienna|"
    "Hungary:Budapest|Norway:Oslo|Sweden:Stockholm|Finland:Helsinki|Denmark:Copenhagen|Ireland:Dublin|"
    "Iceland:Reykjavik|Belgium:Brussels|the Netherlands:Amsterdam|Switzerland:Bern|Canada:Ottawa|"
    "Mexico:Mexico City|Brazil:Brasilia|Argentina:Buenos Aires|Chile:Santiago|Peru:Lima|Colombia:Bogota|"
    "Cuba:Havana|Kenya:Nairobi|Nigeria:Abuja|Ghana:Accra|Morocco:Rabat|Ethiopia:Addis Ababa|"
    "South Africa:Pretoria|Australia:Canberra|New Zealand:Wellington|Thailand:Bangkok|Vietnam:Hanoi|"
    "Indonesia:Jakarta|Malaysia:Kuala Lumpur|the Philippines:Manila|South Korea:Seoul|Iran:Tehran|"
    "Iraq:Baghdad|Israel:Jerusalem|Saudi Arabia:Riyadh|Ukraine:Kyiv|Romania:Bucharest|Bulgaria:Sofia|"
    "Serbia:Belgrade|Croatia:Zagreb|the Czech Republic:Prague|Slovakia:Bratislava|Pakistan:Islamabad|"
    "Nepal:Kathmandu|the United States:Washington|the United Kingdom:London|Scotland:Edinburgh|"
    "Wales:Cardiff|England:London|Slovenia:Ljubljana|Estonia:Tallinn|Latvia:Riga|Lithuania:Vilnius|"
    "Albania:Tirana|Tunisia:Tunis|Algeria:Algiers|Libya:Tripoli|Sudan:Khartoum|Uganda:Kampala|"
    "Tanzania:Dodoma|Senegal:Dakar|Jordan:Amman|Syria:Damascus|Lebanon:Beirut|Afghanistan:Kabul|"
    "Bangladesh:Dhaka|Mongolia:Ulaanbaatar|Singapore:Singapore|Jamaica:Kingston|Panama:Panama City|"
    "Venezuela:Caracas|Ecuador:Quito|Uruguay:Montevideo|Paraguay:Asuncion|Bolivia:Sucre|Luxembourg:Luxembourg|"
    "Malta:Valletta|Cyprus:Nicosia|Georgia:Tbilisi|Armenia:Yerevan|Belarus:Minsk|Kazakhstan:Astana"
)
CONTINENTS = _pairs(
    "France:Europe|Germany:Europe|Italy:Europe|Spain:Europe|Japan:Asia|China:Asia|India:Asia|Thailand:Asia|"
    "Vietnam:Asia|Nepal:Asia|Egypt:Africa|Kenya:Africa|Nigeria:Africa|Ghana:Africa|Morocco:Africa|"
    "Canada:North America|Mexico:North America|Brazil:South America|Peru:South America|Chile:South America|"
    "Argentina:South America|Norway:Europe|Poland:Europe|Greece:Europe"
)
LANGUAGES = _pairs(
    "France:French|Germany:German|Italy:Italian|Spain:Spanish|Portugal:Portuguese|Japan:Japanese|"
    "China:Chinese|Russia:Russian|Egypt:Arabic|Greece:Greek|Turkey:Turkish|Poland:Polish|Hungary:Hungarian|"
    "Norway:Norwegian|Sweden:Swedish|Finland:Finnish|Denmark:Danish|Brazil:Portuguese|Mexico:Spanish|"
    "Argentina:Spanish|Thailand:Thai|Vietnam:Vietnamese|South Korea:Korean|Ukraine:Ukrainian|"
    "Romania:Romanian|Austria:German|Iran:Persian|Israel:Hebrew|England:English|the United States:English"
)
CURRENCIES = _pairs(
    "Japan:yen|China:yuan|India:rupee|Russia:ruble|the United States:dollar|the United Kingdom:pound|"
    "Switzerland:franc|Mexico:peso|Poland:zloty|Sweden:krona|Turkey:lira|Brazil:real|France:euro|"
    "Germany:euro|Italy:euro|Spain:euro|Israel:shekel|South Korea:won|Thailand:baht"
)
SYMBOLS = _pairs(
    "hydrogen:H|helium:He|lithium:Li|carbon:C|nitrogen:N|oxygen:O|neon:Ne|sodium:Na|magnesium:Mg|"
    "aluminium:Al|silicon:Si|sulfur:S|chlorine:Cl|potassium:K|calcium:Ca|iron:Fe|nickel:Ni|copper:Cu|"
    "zinc:Zn|silver:Ag|tin:Sn|gold:Au|mercury:Hg|lead:Pb|uranium:U"
)
OPPOSITES = _pairs(
    "hot:cold|cold:hot|big:small|small:big|fast:slow|slow:fast|up:down|down:up|left:right|light:dark|"
    "dark:light|young:old|rich:poor|poor:rich|happy:sad|sad:happy|open:closed|full:empty|empty:full|"
    "hard:soft|soft:hard|high:low|low:high|long:short|short:long|early:late|late:early|strong:weak|"
    "weak:strong|wet:dry|dry:wet|good:bad|bad:good|day:night|night:day|in:out|thick:thin|true:false|"
    "wide:narrow|clean:dirty|dirty:clean|loud:quiet|near:far|heavy:light|first:last|deep:shallow|"
    "cheap:expensive|black:white|white:black|yes:no|always:never|begin:end|buy:sell|push:pull|"
    "love:hate|war:peace|summer:winter|north:south|east:west|brave:afraid|easy:difficult|smooth:rough|"
    "sharp:blunt|safe:dangerous|new:old|tall:short|warm:cool|win:lose|remember:forget|inside:outside"
)
SOUNDS = _pairs(
    "dog:bark|cat:meow|cow:moo|sheep:baa|duck:quack|lion:roar|horse:neigh|pig:oink|bee:buzz|snake:hiss|"
    "wolf:howl|frog:croak|owl:hoot|mouse:squeak|rooster:crow|donkey:bray|bird:tweet|crow:caw|goat:bleat|"
    "turkey:gobble"
)
BABIES = _pairs(
    "dog:puppy|cat:kitten|cow:calf|sheep:lamb|duck:duckling|lion:cub|horse:foal|pig:piglet|goat:kid|"
    "frog:tadpole|kangaroo:joey|hen:chick|swan:cygnet|deer:fawn|bear:cub|goose:gosling"
)
COLORS = _pairs(
    "the sky:blue|grass:green|snow:white|coal:black|a banana:yellow|blood:red|a carrot:orange|"
    "a lemon:yellow|milk:white|a strawberry:red|chocolate:brown|an elephant:grey|a flamingo:pink|"
    "a plum:purple|the sun:yellow|a tomato:red|the sea:blue|a frog:green|an orange:orange|salt:white|"
    "a cucumber:green|a fire truck:red|the night:black|a leaf:green|cheese:yellow|a polar bear:white"
)
KINDS = _pairs(
    "dog:animal|cat:animal|horse:animal|lion:animal|wolf:animal|elephant:animal|apple:fruit|banana:fruit|"
    "orange:fruit|grape:fruit|pear:fruit|carrot:vegetable|onion:vegetable|potato:vegetable|"
    "cabbage:vegetable|rose:flower|tulip:flower|daisy:flower|sparrow:bird|eagle:bird|owl:bird|"
    "salmon:fish|shark:fish|tuna:fish|ant:insect|bee:insect|fly:insect|guitar:instrument|piano:instrument|"
    "violin:instrument|hammer:tool|saw:tool|car:vehicle|bus:vehicle|bike:vehicle|oak:tree|pine:tree|"
    "birch:tree|chair:piece of furniture|table:piece of furniture"
)
AUTHORS = _pairs(
    "Hamlet:William Shakespeare|Romeo and Juliet:William Shakespeare|Macbeth:William Shakespeare|"
    "Don Quixote:Miguel de Cervantes|War and Peace:Leo Tolstoy|Anna Karenina:Leo Tolstoy|"
    "The Odyssey:Homer|The Iliad:Homer|Emma:Jane Austen|Pride and Prejudice:Jane Austen|"
    "Oliver Twist:Charles Dickens|A Christmas Carol:Charles Dickens|Faust:Goethe|1984:George Orwell|"
    "Animal Farm:George Orwell|The Hobbit:J. R. R. Tolkien|The Lord of the Rings:J. R. R. Tolkien|"
    "Harry Potter:J. K. Rowling|Crime and Punishment:Fyodor Dostoevsky|Moby Dick:Herman Melville|"
    "Frankenstein:Mary Shelley|Dracula:Bram Stoker|The Divine Comedy:Dante|Ulysses:James Joyce|"
    "The Little Prince:Antoine de Saint-Exupery|Les Miserables:Victor Hugo|"
    "The Jungle Book:Rudyard Kipling|Alice in Wonderland:Lewis Carroll|Peter Pan:J. M. Barrie|"
    "Robinson Crusoe:Daniel Defoe|Treasure Island:Robert Louis Stevenson|Jane Eyre:Charlotte Bronte|"
    "The Trial:Franz Kafka|Pinocchio:Carlo Collodi|Tom Sawyer:Mark Twain|Sherlock Holmes:Arthur Conan Doyle"
)
PEOPLE = _pairs(
    "painted the Mona Lisa:Leonardo da Vinci|painted Guernica:Pablo Picasso|"
    "painted The Starry Night:Vincent van Gogh|painted The Scream:Edvard Munch|"
    "painted Water Lilies:Claude Monet|invented the telephone:Alexander Graham Bell|"
    "invented the light bulb:Thomas Edison|invented dynamite:Alfred Nobel|"
    "invented the printing press:Johannes Gutenberg|invented the steam engine:James Watt|"
    "invented the World Wide Web:Tim Berners-Lee|discovered penicillin:Alexander Fleming|"
    "discovered gravity:Isaac Newton|discovered radium:Marie Curie|discovered America:Christopher Columbus|"
    "developed the theory of relativity:Albert Einstein|developed the theory of evolution:Charles Darwin|"
    "composed The Magic Flute:Mozart|composed The Four Seasons:Vivaldi|composed Fidelio:Beethoven|"
    "composed Swan Lake:Tchaikovsky|was the first person on the Moon:Neil Armstrong|"
    "was the first person in space:Yuri Gagarin|founded Microsoft:Bill Gates|founded Apple:Steve Jobs|"
    "created Linux:Linus Torvalds|created Python:Guido van Rossum|was the first president of the "
    "United States:George Washington"
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = listed("January February March April May June July August September October November December")
NUMBER_WORDS = listed("zero one two three four five six seven eight nine ten eleven twelve")
ORDINALS = listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
_MONTH_DAYS = listed("31 28 31 30 31 30 31 31 30 31 30 31")
_SEASONS = listed("winter winter spring spring spring summer summer summer autumn autumn autumn winter")


def _following(cycle: list[str], step: int) -> Pairs:
    return tuple((item, cycle[(i + step) % len(cycle)]) for i, item in enumerate(cycle))


PLURALS = _pairs(
    "mouse:mice|child:children|man:men|woman:women|foot:feet|tooth:teeth|goose:geese|person:people|"
    "book:books|car:cars|box:boxes|leaf:leaves|wolf:wolves|city:cities|sheep:sheep|knife:knives|baby:babies|"
    "house:houses|fish:fish|ox:oxen"
)
PASTS = _pairs(
    "go:went|see:saw|eat:ate|run:ran|come:came|take:took|give:gave|write:wrote|read:read|speak:spoke|"
    "buy:bought|think:thought|make:made|do:did|have:had|is:was|sing:sang|swim:swam|drink:drank|sleep:slept|"
    "know:knew|find:found|walk:walked|play:played"
)
TRANSLATIONS = _pairs(
    "hello in French:bonjour|hello in Spanish:hola|hello in German:hallo|hello in Italian:ciao|"
    "thank you in French:merci|thank you in Spanish:gracias|thank you in German:danke|"
    "thank you in Italian:grazie|yes in French:oui|yes in German:ja|yes in Spanish:si|cat in French:chat|"
    "cat in Spanish:gato|cat in German:Katze|dog in French:chien|dog in Spanish:perro|dog in German:Hund|"
    "water in French:eau|water in Spanish:agua|water in German:Wasser|house in French:maison|"
    "house in Spanish:casa|house in German:Haus|bread in French:pain|bread in Spanish:pan|"
    "bread in German:Brot"
)
PLACES = _pairs(
    "the Eiffel Tower:Paris|the Colosseum:Rome|Big Ben:London|the Statue of Liberty:New York|"
    "the Kremlin:Moscow|the Great Wall:China|the Taj Mahal:India|the Acropolis:Athens|"
    "the Brandenburg Gate:Berlin|the Louvre:Paris|the Sahara:Africa|the Amazon:South America|"
    "Mount Fuji:Japan|the Alps:Europe|the Grand Canyon:the United States|Machu Picchu:Peru|"
    "the Leaning Tower:Pisa|the Golden Gate Bridge:San Francisco|the Pyramids:Egypt|the Prado:Madrid"
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "capital", CAPITALS,
        ("What is the capital of {a}?", "What's the capital of {a}?", "Name the capital of {a}.",
         "Which city is the capital of {a}?", "Tell me the capital of {a}.", "capital of {a}?",
         "Do you know the capital of {a}?", "What is the capital city of {a}?", "The capital of {a} is",
         "Can you tell me what the capital of {a} is?", "I want to know the capital of {a}."),
        "The capital of {a} is {b}.", 26,
    ),
    Family(
        "capital_of", CAPITALS,
        ("{b} is the capital of which country?", "Which country has the capital {b}?",
         "What country is {b} the capital of?", "{b} is the capital of what country?",
         "Of which country is {b} the capital?"),
        "{b} is the capital of {a}.", 7,
    ),
    Family(
        "continent", CONTINENTS,
        ("On which continent is {a}?", "Which continent is {a} in?", "Where is {a}?",
         "What continent is {a} on?"),
        "{A} is in {b}.", 4,
    ),
    Family(
        "language", LANGUAGES,
        ("What language do people speak in {a}?", "Which language is spoken in {a}?",
         "What is the language of {a}?", "Which language do they speak in {a}?",
         "What language is spoken in {a}?"),
        "People in {a} speak {b}.", 5,
    ),
    Family(
        "currency", CURRENCIES,
        ("What is the currency of {a}?", "What money is used in {a}?", "Which currency does {a} use?",
         "Name the currency of {a}."),
        "The currency of {a} is the {b}.", 3,
    ),
    Family(
        "symbol", SYMBOLS,
        ("What is the chemical symbol for {a}?", "What is the symbol of {a}?",
         "Which symbol does {a} have?", "Give me the chemical symbol of {a}."),
        "The chemical symbol of {a} is {b}.", 4,
    ),
    Family(
        "opposite", OPPOSITES,
        ("What is the opposite of {a}?", "What's the opposite of {a}?", "Give me the opposite of {a}.",
         "opposite of {a}?", "Which word is the opposite of {a}?", "Tell me the opposite of {a}.",
         "What is the opposite of the word {a}?"),
        "The opposite of {a} is {b}.", 11,
    ),
    Family(
        "sound", SOUNDS,
        ("What sound does {na} make?", "Which sound does {na} make?", "How does {na} sound?",
         "What does {na} say?", "What noise does {na} make?"),
        "{NA} makes the sound {b}.", 4,
    ),
    Family(
        "baby", BABIES,
        ("What is a baby {a} called?", "What do you call a baby {a}?", "What is the name for a young {a}?",
         "How do you call a young {a}?"),
        "A baby {a} is called {nb}.", 3,
    ),
    Family(
        "color", COLORS,
        ("What color is {a}?", "What is the color of {a}?", "Which color does {a} have?",
         "Tell me the color of {a}.", "What colour is {a}?"),
        "{A} is {b}.", 5,
    ),
    Family(
        "author", AUTHORS,
        ("Who wrote {a}?", "Who is the author of {a}?", "Tell me who wrote {a}.",
         "Do you know who wrote {a}?", "Which author wrote {a}?", "By whom is {a}?"),
        "{b} wrote {a}.", 9,
    ),
    Family(
        "person", PEOPLE,
        ("Who {a}?", "Tell me who {a}.", "Do you know who {a}?", "Which person {a}?"),
        "{b} {a}.", 6,
    ),
    Family(
        "place", PLACES,
        ("Where is {a}?", "In which place is {a}?", "Where can I find {a}?", "Do you know where {a} is?"),
        "{A} is in {b}.", 4,
    ),
    Family(
        "day_after", _following(DAYS, 1),
        ("Which day comes after {a}?", "What day comes after {a}?", "What is the day after {a}?",
         "What day follows {a}?"),
        "{b} comes after {a}.", 2,
    ),
    Family(
        "day_before", _following(DAYS, -1),
        ("Which day comes before {a}?", "What day comes before {a}?", "What is the day before {a}?"),
        "{b} comes before {a}.", 2,
    ),
    Family(
        "month_after", _following(MONTHS, 1),
        ("Which month comes after {a}?", "What month comes after {a}?", "What is the month after {a}?",
         "What month follows {a}?"),
        "{b} comes after {a}.", 2,
    ),
    Family(
        "month_before", _following(MONTHS, -1),
        ("Which month comes before {a}?", "What month comes before {a}?", "What is the month before {a}?"),
        "{b} comes before {a}.", 2,
    ),
    Family(
        "month_days", tuple(zip(MONTHS, _MONTH_DAYS, strict=True)),
        ("How many days are in {a}?", "How many days does {a} have?", "How long is {a}?"),
        "{a} has {b} days.", 1.5,
    ),
    Family(
        "month_number", tuple(zip(ORDINALS, MONTHS, strict=True)),
        ("What is the {a} month of the year?", "Which month is the {a} month?", "Name the {a} month."),
        "The {a} month of the year is {b}.", 1.5,
    ),
    Family(
        "season", tuple(zip(MONTHS, _SEASONS, strict=True)),
        ("In which season is {a}?", "Which season is {a} in?", "What season is {a}?"),
        "{a} is in {b}.", 1.5,
    ),
    Family(
        "kind", KINDS,
        ("What is {na}?", "What kind of thing is {na}?", "Tell me what {na} is.", "{NA} is what?"),
        "{NA} is {nb}.", 4,
    ),
    Family(
        "plural", PLURALS,
        ("What is the plural of {a}?", "Give me the plural of {a}.", "plural of {a}?",
         "Which word is the plural of {a}?"),
        "The plural of {a} is {b}.", 2,
    ),
    Family(
        "past", PASTS,
        ("What is the past tense of {a}?", "Give me the past tense of {a}.", "past tense of {a}?",
         "Which word is the past tense of {a}?"),
        "The past tense of {a} is {b}.", 2,
    ),
    Family(
        "translation", TRANSLATIONS,
        ("How do you say {a}?", "What is {a}?", "Say {a}.", "How does one say {a}?", "Translate {a}."),
        "{A} is {b}.", 3,
    ),
)  # fmt: skip


def _load_questions() -> tuple[tuple[tuple[str, ...], str], ...]:
    """questions.txt: lines `question / other wording => answer`."""
    lines = Path(__file__).with_name("questions.txt").read_text(encoding="utf-8").splitlines()
    facts = [line.split(" => ") for line in lines if line and not line.startswith("#")]
    return tuple((tuple(wordings.split(" / ")), answer) for wordings, answer in facts)


# Questions with an answer of their own.
QUESTIONS = _load_questions()
