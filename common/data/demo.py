"""Messages of a bank's customers, generated: six classes, label noise, personal details that are nobody's.

What a class means is said in many ways, most messages mention a second topic in passing, and part of the labels are
wrong, so that no keyword decides. The same seed gives the same rows on every machine. Names, numbers and addresses are
drawn at random; telephone numbers and mail domains are reserved for fiction (Ofcom drama numbers, RFC 2606).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError

SPLITS = {"train": (16000, 1), "validation": (400, 2), "test": (600, 3), "public": (2000, 4)}
"""rows and seed of each split"""
LABEL_NOISE = 0.04

_CORES = {
    "card": [
        "the machine kept my {card} this morning",
        "my {card} gets declined in every {shop}",
        "I left my {card} in a {shop} and cannot find it",
        "the chip on my {card} stopped working",
        "the new {card} never arrived in the post",
        "I cannot tap to pay at the {shop} any more",
        "somebody may have copied my {card} at the petrol station",
        "the {card} expires this month and no replacement has come",
        "please block my {card} at once",
        "how do I choose a new PIN for the plastic",
        "the cash machine swallowed it and showed no message",
        "my wallet was stolen in the tram with everything in it",
    ],
    "dispute": [
        "there is a payment of {amount} to a {shop} that I never made",
        "I was billed twice by the same {shop}",
        "a {shop} took {amount} although I sent everything back",
        "I do not recognise {amount} on my statement",
        "the {shop} refuses to refund {amount}",
        "a subscription I cancelled last year took {amount} again",
        "they delivered nothing and kept {amount}",
        "somebody bought goods in my name for {amount}",
        "the amount on the receipt and what you took differ by {amount}",
        "I want the money back from a {shop} that closed down",
        "a debit of {amount} appeared that nobody in our family authorised",
        "the hotel charged the minibar although we never opened it",
    ],
    "access": [
        "the app says my password is wrong",
        "I am locked out after three attempts",
        "the confirmation code never reaches my phone",
        "I changed my handset and cannot sign in any more",
        "the website logs me out again and again",
        "face recognition no longer opens the app",
        "I forgot the answer to my security question",
        "my user name is said to be unknown",
        "since the update I only see a white page after signing in",
        "my late husband's online profile has to be opened by me",
        "the text message with the number comes an hour late",
        "I cannot get past the screen that asks for the second factor",
    ],
    "loan": [
        "what would I pay each month if I borrowed {amount}",
        "can I repay my mortgage early",
        "the rate on my home financing ends next year",
        "my application for {amount} was turned down and I wonder why",
        "we want to buy a flat and have {amount} of our own",
        "could the instalments be paused while I am on parental leave",
        "is there something cheaper than my overdraft for {amount} over two years",
        "what papers do you need to finance a used car",
        "may my brother stand surety for me",
        "how long until you decide whether I get {amount}",
        "I would like to spread what I owe over more months",
        "does a fixed term make sense now for our house",
    ],
    "transfer": [
        "the {amount} I sent on Monday has not arrived",
        "my salary is still not there",
        "I typed one digit of the IBAN wrong and {amount} is gone",
        "how long does money to Norway take",
        "the standing order for the rent was not carried out",
        "I need to call back {amount} that I sent by mistake",
        "my landlord says he has received nothing",
        "the instant payment has been pending for hours",
        "what is the highest sum I can send in a day",
        "{amount} from my aunt abroad is stuck somewhere",
        "I sent it to my old account, which is closed",
        "the wire came back without any explanation",
    ],
    "fees": [
        "why do you take {amount} every quarter for nothing",
        "I was told that keeping the account is free",
        "you deducted {amount} for a paper statement",
        "withdrawing cash abroad cost me {amount} on top",
        "students should not have to pay {amount} for this",
        "the price list changed and nobody asked me",
        "please explain the {amount} for foreign currency",
        "interest of {amount} on a few days in the red is outrageous",
        "the yearly price of the gold package has doubled",
        "other banks ask nothing for that service",
        "I want a refund of the commission of {amount}",
        "there is a line called maintenance for {amount}",
    ],
}
_PASSING = {
    "card": ["I ordered a card last year", "my card works fine", "I paid by card as always"],
    "dispute": ["I once had a wrong charge refunded", "my statement looks fine otherwise", "the refund last May came"],
    "access": ["the app opens normally", "I wrote this after signing in online", "I reset my password in spring"],
    "loan": ["my loan is with you too", "we finance our house through you", "I repaid my credit in June"],
    "transfer": ["transfers have always been quick", "my salary comes to you", "I sent a transfer on Friday"],
    "fees": ["your fees are fair", "I never minded the monthly price", "the account is free for me"],
}
_OPENINGS = ["Hello,", "Good morning,", "Dear team,", "Hi there,", "To whom it may concern,", "Urgent:", "Hey,", ""]
_BRIDGES = ["{passing}, but {core}.", "{core}. {passing}, by the way.", "{passing}. Now {core}.", "{core}; {passing}."]
_PLAIN = ["{core}.", "It seems that {core}.", "I am writing because {core}.", "{core}, can you help?", "{core}!!"]
_CLOSINGS = [
    "My number is {phone}.",
    "You can write to {mail}.",
    "Regards, {name}",
    "Customer {customer}, {name}.",
    "My IBAN is {iban}.",
    "I was born on {birth}.",
    "Thank you.",
    "",
    "",
    "",
]
FIRST = [
    "Amina",
    "Bruno",
    "Chiara",
    "Daniel",
    "Elif",
    "Femke",
    "Goran",
    "Hanna",
    "Ivo",
    "Jana",
    "Kofi",
    "Lena",
    "Mateo",
    "Nora",
    "Omar",
    "Petra",
    "Rosa",
]
LAST = [
    "Abel",
    "Brandt",
    "Costa",
    "Duarte",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Huber",
    "Jansen",
    "Kaya",
    "Lind",
    "Moreau",
    "Novak",
    "Okafor",
    "Peeters",
]
_SHOPS = [
    "supermarket",
    "hotel",
    "pharmacy",
    "bookshop",
    "online shop",
    "restaurant",
    "garage",
    "furniture store",
    "airline",
]
_CARDS = ["card", "debit card", "credit card", "bank card", "gold card"]

LABELS = sorted(_CORES)


def table(spec: str) -> pa.Table:
    """Rows of `SPLIT` or `SPLIT?rows=N`: text, label, and the branch that received the message.

    Raises DataError for another split or a bad number.
    """
    split, _, option = spec.partition("?rows=")
    if split not in SPLITS or (option and not (option.isdigit() and int(option) > 0)):
        raise DataError(f"demo:{spec}: allowed: demo:{', demo:'.join(SPLITS)}, each with ?rows=NUMBER")
    rows, seed = SPLITS[split]
    return generate(int(option) if option else rows, seed)


def generate(rows: int, seed: int) -> pa.Table:
    """`rows` messages; columns text, label, branch."""
    rng = np.random.default_rng([seed, 0xBA4C])
    texts, labels, branches = [], [], []
    for _ in range(rows):
        label = _pick(rng, LABELS)
        texts.append(_message(rng, label))
        wrong = rng.random() < LABEL_NOISE
        labels.append(_pick(rng, [other for other in LABELS if other != label]) if wrong else label)
        branches.append(f"branch-{int(rng.integers(1, 9))}")
    return pa.table({"text": texts, "label": labels, "branch": branches})


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _message(rng: np.random.Generator, label: str) -> str:
    core = _pick(rng, _CORES[label])
    if rng.random() < 0.7:
        passing = _pick(rng, _PASSING[_pick(rng, [other for other in LABELS if other != label])])
        body = _pick(rng, _BRIDGES).format(core=core, passing=passing)
    else:
        body = _pick(rng, _PLAIN).format(core=core)
    body = body.format(
        card=_pick(rng, _CARDS), shop=_pick(rng, _SHOPS), amount=f"{rng.integers(3, 9000)}.{rng.integers(10, 99)} EUR"
    )
    text = " ".join(part for part in (_pick(rng, _OPENINGS), body, _closing(rng)) if part)
    return _mistyped(rng, text) if rng.random() < 0.25 else text


def _closing(rng: np.random.Generator) -> str:
    first, last = _pick(rng, FIRST), _pick(rng, LAST)
    return _pick(rng, _CLOSINGS).format(
        phone=f"07700 900{rng.integers(0, 1000):03d}",
        mail=f"{first}.{last}@example.com".lower(),
        name=f"{first} {last}",
        customer=rng.integers(10**6, 10**7),
        iban=f"XX{rng.integers(10, 99)} " + " ".join(str(rng.integers(1000, 9999)) for _ in range(3)),
        birth=f"{rng.integers(1, 29)}.{rng.integers(1, 13)}.{rng.integers(1940, 2005)}",
    )


def _mistyped(rng: np.random.Generator, text: str) -> str:
    """Two neighbouring letters exchanged, or everything in lower case, as people write."""
    if rng.random() < 0.5:
        return text.lower()
    at = int(rng.integers(len(text) - 1))
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
