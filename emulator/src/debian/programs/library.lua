-- The C library's vector code: strings against plain loops, and sums of functions.
local ffi = require("ffi")
ffi.cdef[[
void *memcpy(void *, const void *, size_t); void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t); int memcmp(const void *, const void *, size_t);
void *memchr(const void *, int, size_t); void *memrchr(const void *, int, size_t);
size_t strlen(const char *); size_t strnlen(const char *, size_t);
char *strchr(const char *, int); char *strrchr(const char *, int);
int strcmp(const char *, const char *); int strncmp(const char *, const char *, size_t);
char *strstr(const char *, const char *); size_t strspn(const char *, const char *);
size_t strcspn(const char *, const char *); void *memmem(const void *, size_t, const void *, size_t);
char *strcpy(char *, const char *); char *strcat(char *, const char *);
double sin(double); double cos(double); double tan(double); double exp(double); double log(double);
double pow(double, double); double atan(double); double exp2(double); double log2(double);
double sinh(double); double cbrt(double); double erf(double); double fma(double, double, double);
double floor(double); double rint(double); double hypot(double, double); double fmod(double, double);
float sinf(float); float expf(float); float logf(float); float powf(float, float);
]]
local C, m = ffi.C, ffi.load("libm.so.6")
local state = 4711
local function random(n)
  state = (state * 1103515245 + 12345) % 2147483648
  return math.floor(state / 1024) % n
end
local size = 1200
local a, b, want = ffi.new("unsigned char[?]", size), ffi.new("unsigned char[?]", size), ffi.new("unsigned char[?]", size)
local function text(p) return ffi.cast("const char *", p) end
local function same(what, x, y) if x ~= y then error(what .. ": " .. tostring(x) .. ", not " .. tostring(y)) end end
local function sign(n) return n < 0 and -1 or n > 0 and 1 or 0 end
local function offset(p, from)
  if p == nil then return -1 end
  return tonumber(ffi.cast("const unsigned char *", p) - from)
end
for round = 1, 1500 do
  local kinds = random(8) + 1
  for i = 0, size - 1 do a[i] = 1 + random(kinds) end
  local from, len = random(70), random(round % 3 == 0 and 1000 or 140)
  local to = random(70)
  a[from + len] = 0
  local p = a + from
  same("strlen", tonumber(C.strlen(text(p))), len)
  same("strnlen", tonumber(C.strnlen(text(p), 77)), math.min(len, 77))
  local c = 1 + random(kinds + 1)
  local first, last = -1, -1
  for i = 0, len - 1 do if p[i] == c then last = i; if first < 0 then first = i end end end
  same("memchr", offset(C.memchr(p, c, len), p), first)
  same("memrchr", offset(C.memrchr(p, c, len), p), last)
  same("strchr", offset(C.strchr(text(p), c), p), first)
  same("strrchr", offset(C.strrchr(text(p), c), p), last)
  for i = 0, size - 1 do want[i] = b[i] end
  for i = 0, len do want[to + i] = p[i] end
  if round % 2 == 0 then C.memcpy(b + to, p, len + 1) else C.strcpy(ffi.cast("char *", b + to), text(p)) end
  for i = 0, size - 1 do if b[i] ~= want[i] then error("copy at " .. i) end end
  same("memcmp", C.memcmp(b + to, p, len + 1), 0)
  same("strcmp", C.strcmp(text(b + to), text(p)), 0)
  if len > 0 then
    local at = random(len)
    local old = b[to + at]
    b[to + at] = 1 + random(255)
    local d = sign(b[to + at] - old)
    same("memcmp", sign(C.memcmp(b + to, p, len)), d)
    same("strcmp", sign(C.strcmp(text(b + to), text(p))), d)
    same("strncmp", C.strncmp(text(b + to), text(p), at), 0)
    b[to + at] = old
    local n = math.min(len - at, 1 + random(5))
    local found = -1
    for i = 0, len - n do
      local equal = true
      for j = 0, n - 1 do if p[i + j] ~= p[at + j] then equal = false; break end end
      if equal then found = i; break end
    end
    same("memmem", offset(C.memmem(p, len, p + at, n), p), found)
    local needle = ffi.string(p + at, n)
    same("strstr", offset(C.strstr(text(p), needle), p), found)
    local span = 0
    while span < len and needle:find(string.char(p[span]), 1, true) do span = span + 1 end
    same("strspn", tonumber(C.strspn(text(p), needle)), span)
    -- Overlapping both ways.
    for i = 0, size - 1 do want[i] = a[i] end
    local shift = random(40)
    local q = random(2) == 0 and from + shift or math.max(0, from - shift)
    for i = 0, len - 1 do want[q + i] = p[i] end
    local copy = ffi.new("unsigned char[?]", size, 0)
    for i = 0, size - 1 do copy[i] = a[i] end
    for i = 0, len - 1 do want[q + i] = copy[from + i] end
    C.memmove(a + q, p, len)
    for i = 0, size - 1 do if a[i] ~= want[i] then error("move at " .. i) end end
  end
  C.memset(b + to, c, len)
  for i = 0, size - 1 do same("memset", b[i], (i >= to and i < to + len) and c or i == to + len and 0 or b[i]) end
end
print("strings", "right")
local unary = {"sin", "cos", "tan", "exp", "log", "atan", "exp2", "log2", "sinh", "cbrt", "erf", "floor", "rint", "sinf", "expf", "logf"}
for _, name in ipairs(unary) do
  local sum, f = 0, m[name]
  for i = 1, 5000 do
    local x = (i * 0.0137) % 40 + i * 1e-7
    sum = sum * 0.999 + f(x)
  end
  print(name, ("%.17g"):format(sum))
end
for _, name in ipairs{"pow", "hypot", "fmod", "powf"} do
  local sum, f = 0, m[name]
  for i = 1, 5000 do sum = sum * 0.999 + f((i * 0.0137) % 17 + 0.1, (i * 0.0731) % 9 + 0.3) end
  print(name, ("%.17g"):format(sum))
end
local sum = 0
for i = 1, 5000 do sum = m.fma(sum, 0.999, i / 3) end
print("fma", ("%.17g"):format(sum))
