"""Texts for the golden files: the corners of tokenizers, and random mixtures of them."""

import random

CORNERS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "  two leading spaces, two trailing  ",
    "one\ntwo\n\nthree\n\n\n four\r\n\tfive\t\tsix",
    "\n",
    "\n\n\n",
    "   \n   \n",
    "\t\t\tdeep\n\t\t\t\tdeeper",
    "0 1 12 123 1234 12345 3.14159 1,000,000 2024-06-07 0x1F 1e-10 x2 2x",
    "Ⅷ ½ ² ٣ ४ 三",
    "I'm you're he's we'll they've I'd don't CAN'T 'tis rock'n'roll ''s",
    "naïve café résumé Straße Ångström señor œuvre İstanbul",
    "e\u0301 combining, \u00e9 composed, \ufb01 ligature, zero\u200bwidth, nb\u00a0space, \u3000wide",
    "Ελληνικά русский עברית العربية हिन्दी ไทย 한국어",
    "日本語のテキスト。中文文本，标点！",
    "😀 😃😄 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "def f(x):\n    if x <= 0:\n        return [i ** 2 for i in range(10)]\n    # comment\n\treturn None\n",
    'fn main() { println!("{:?}", vec![1u8; 3]); } // ok\n',
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9"}}',
    "<html><body class=\"x\">&amp; &lt;tag/&gt;</body></html>",
    "https://example.org/path?query=1&other=%20#fragment user@example.org",
    "!!! ??? ... --- ___ *** $$$ ((())) [[[]]] {{{}}} <<<>>> ~~~ ``` ;;; ::: |||",
    "$E = mc^2$ \\frac{a}{b} \\sum_{i=0}^{n} x_i",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><|endoftext|> text<|im_end|>",
    "<|im_start|", "im_end|>", "<|unknown|>", "<repo_name>x<file_sep>y<reponame>",
    "control \x00\x01\x02\x7f characters",
    "a" * 100,
    "ab" * 50,
    " " * 40 + "x" + " " * 7,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "camelCaseIdentifier snake_case_identifier SCREAMING_SNAKE kebab-case-name",
    "x=1;y=2;z=x+y;print(z)//done",
    "Price: $1,234.56 (50% off!) — “quoted” ‘single’ … • ©®™",
    "Mixed CASE'S and 'LL endings: HE'LL SHE'S I'VE",
    "12345678 1234567 ab1cd22ef333",
    "line one  \n  line two\r\n\r\n   line three   ",
    "tail space ",
]


def mixtures(count):
    rng = random.Random(7)
    alphabet = list("aeiou tnshr  \n\t.,'0123456789_-+(){}<>|éßж中あ😀")
    alphabet += ["'s", "'LL", "<|im_end|>", "ing", " the"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))) for _ in range(count)]


TEXTS = CORNERS + mixtures(80)
