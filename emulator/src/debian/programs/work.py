# What programs do: numbers, texts, containers, objects, exceptions, generators, compression.
import hashlib, json, math, random, re, struct, zlib, decimal, fractions, collections, heapq

def show(name, value):
    print(name, hashlib.sha256(repr(value).encode()).hexdigest()[:32])

r = random.Random(42)
show("floats", [r.gauss(0, 1) * math.exp(r.random()) for _ in range(5000)])
show("functions", [(math.sin(x / 7), math.pow(x, 0.3), math.lgamma(x + 1), math.fsum([x / 3, 1e-9])) for x in range(2000)])
show("integers", [pow(3, 2000 + i, 10 ** 60 + i) for i in range(200)] + [math.factorial(500) // 7 ** 90])
show("decimal", sum((decimal.Decimal(i).sqrt() for i in range(500)), decimal.Decimal(0)))
show("fractions", sum((fractions.Fraction(1, i) for i in range(1, 150)), fractions.Fraction(0)))
words = ["".join(r.choice("abcdeé√😀") for _ in range(r.randrange(1, 9))) for _ in range(8000)]
show("words", sorted(collections.Counter(words).items(), key=lambda item: (-item[1], item[0])))
show("regular", re.findall(r"(a+|b[cd])(?=e)|é.", " ".join(words)))
show("json", json.loads(json.dumps([words[:300], {"x": [1.5, None, True]}], ensure_ascii=False)))
text = " ".join(words).encode()
packed = zlib.compress(text, 9)
show("zlib", (zlib.decompress(packed) == text, len(packed), zlib.crc32(text), zlib.adler32(text)))
show("struct", struct.pack("<fdqHb", 1.1, 2.2, -3, 4, -5) + struct.pack(">e", 1.5))
for name in sorted(["md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256"]):
    show(name, hashlib.new(name, text * 20).hexdigest())
heap = []
for i in range(20000):
    heapq.heappush(heap, (r.random(), i))
show("heap", [heapq.heappop(heap)[1] for _ in range(5000)])

def queens(n, row=0, cols=0, left=0, right=0):
    if row == n:
        return 1
    free, count = ~(cols | left | right) & ((1 << n) - 1), 0
    while free:
        bit = free & -free
        free -= bit
        count += queens(n, row + 1, cols | bit, (left | bit) << 1, (right | bit) >> 1)
    return count

show("queens", queens(8))

def caught(n):
    try:
        return caught(n - 1) if n else 1 // 0
    except ZeroDivisionError as error:
        raise (ValueError(n) if n % 2 else ZeroDivisionError(n)) from error

try:
    caught(6)
except Exception as error:
    show("exceptions", (type(error).__name__, str(error)))
show("generators", sum(x * y for x in range(200) for y in range(x) if (x ^ y) & 5 == 1))
