"""Seeded damage: to bytes, to what JSON holds, and to lists of arguments."""

import copy
import json
import struct

WHOLE_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)
# What a value of a JSON file may become; each is wrong in some place.
VALUES = (
    None, True, False, 0, -1, 3, 0.5, -0.0, 1e308, 10**30, -(2**63), float("nan"), float("inf"), "", "0", "nan",
    "x" * 999,    "caf\u00e9 \u732b", "\ud800", "\0", "..", [], {}, [None], [[]], [-1, 3], {"": 0}, ["a", "a"],
)  # fmt: skip
# What an argument may become.
WORDS = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "-0", "0.0", "1e400", "1e-400", "1/0", "0/0", "1/nan", "x", "3.7", "0x10",
    "1_0", "9" * 30, "-" + "9" * 30, "2e9", "\u0663", "\u00e9\u732b", "caf\udce9", "=", "-", "--", "/dev/null/x",
    "..", "a" * 300, "%s", "{}", "$$", "\n", "cuda:99", "cuda:-1", "meta", "cpu:0", "mps", "auto",
)  # fmt: skip


def damaged(random, data):
    """Return bytes with a few places damaged, half of the time near their beginning."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        near = min(len(data), 64 if random.random() < 0.5 else len(data))
        at = random.randrange(near + 1)
        how = random.randrange(9)
        if how == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
        elif how == 1 and data:
            data[min(at, len(data) - 1)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
        elif how == 2:
            form = random.choice("<>") + random.choice("HI")
            value = random.choice(WHOLE_NUMBERS) % 256 ** struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif how == 3:
            del data[at : at + random.choice((1, 2, 16, 999))]
        elif how == 4:
            data[at:at] = random.randbytes(random.choice((1, 4, 64)))
        elif how == 5:
            data[at:at] = data[at : at + random.choice((1, 16, 256))]
        elif how == 6:
            del data[random.randrange(len(data) + 1) :]
        elif how == 7:
            data += random.randbytes(random.choice((1, 64)))
        else:
            length, other = random.choice((4, 64)), random.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def places(tree):
    """Yield (container, key) of every value in what JSON holds."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from places(value)


def altered(random, tree):
    """Return what JSON holds with a few values of another type or size, or gone; the tree itself may be changed."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        found = list(places(tree))
        if not found or random.random() < 0.03:
            return copy.deepcopy(random.choice(VALUES))
        container, key = random.choice(found)
        how = random.random()
        if how < 0.65:
            container[key] = copy.deepcopy(random.choice(VALUES))
        elif how < 0.8:
            del container[key]
        elif how < 0.9:
            container[key] = [container[key]]
        elif isinstance(container, dict):
            container[str(key) + "_"] = container.pop(key)
        else:
            container.append(container[key])
    return tree


def altered_json(random, text):
    """Return the bytes of a JSON file with values altered or, now and then, its bytes damaged or nested deeply."""
    how = random.random()
    if how < 0.15:
        return damaged(random, text.encode())
    if how < 0.2:
        depth = random.choice((99, 100_000))
        return text.replace("{", '{"deep":' + "[" * depth + "]" * depth + ",", 1).encode()
    return json.dumps(altered(random, json.loads(text))).encode()


def altered_rows(random, text):
    """Return the bytes of a file of JSON rows with one altered, doubled or missing, or cut short."""
    lines = text.splitlines()
    at = random.randrange(len(lines))
    how = random.randrange(4)
    if how == 0:
        return text.encode()[: random.randrange(len(text))]
    if how == 1:
        lines[at] = altered_json(random, lines[at]).decode(errors="replace")
    elif how == 2:
        lines[at:at] = [random.choice(("", "[]", "null", "{}", lines[at]))]
    else:
        del lines[at]
    return "".join(f"{line}\n" for line in lines).encode()


def altered_words(random, words, options):
    """Return a list of arguments with words changed, doubled or gone, and options of the command with bad values."""
    words = [str(word) for word in words]
    for _ in range(random.choice((1, 1, 2, 3))):
        how = random.random()
        if how < 0.6 and options:
            value = random.choice(WORDS)
            option = random.choice(options)
            words += random.choice(([option, value], [f"{option}={value}"], [option]))
        elif how < 0.8 and words:
            words[random.randrange(len(words))] = random.choice(WORDS)
        elif how < 0.9 and words:
            del words[random.randrange(len(words))]
        else:
            words.insert(random.randrange(len(words) + 1), random.choice(WORDS))
    return [word.replace("\0", "") for word in words]
