-- Loops that LuaJIT compiles: its machine code is written while it runs.
local function show(name, value) print(name, type(value) == "number" and ("%.17g"):format(value) or value) end
local s = 0
for i = 1, 2000000 do s = s + (i % 7) * 0.5 - (i % 3) end
show("loop", s)
local t = {}
for i = 1, 100000 do t[i] = (i * 7919) % 100003 end
table.sort(t)
local h = 0
for i = 1, #t do h = (h * 31 + t[i]) % 1000003 end
show("sort", h)
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
show("recursion", fib(25))
local bit = require("bit")
local x = 1
for i = 1, 500000 do
  x = bit.bxor(x, bit.lshift(x, 13)); x = bit.bxor(x, bit.rshift(x, 17)); x = bit.bxor(x, bit.lshift(x, 5))
end
show("bits", x)
local parts = {}
for i = 1, 20000 do parts[#parts + 1] = ("%x:%s"):format(i * 2654435761 % 4294967296, ("ab"):rep(i % 5)) end
local text, n = table.concat(parts, ","), 0
for word in text:gmatch("[^,:]+") do n = (n * 33 + #word + word:byte()) % 16777213 end
show("strings", n)
local ffi = require("ffi")
local m = ffi.new("double[64][64]"); local p = ffi.new("double[64][64]")
for i = 0, 63 do for j = 0, 63 do m[i][j] = math.sin(i * 64 + j) end end
for i = 0, 63 do for j = 0, 63 do local v = 0.0; for k = 0, 63 do v = v + m[i][k] * m[k][j] end p[i][j] = v end end
local trace = 0.0
for i = 0, 63 do trace = trace + p[i][i] end
show("matrix", trace)
local q = ffi.new("uint64_t", 88172645463325252ULL)
for i = 1, 300000 do q = q * 6364136223846793005ULL + 1442695040888963407ULL end
show("wide", tostring(q))
local f = 0
for i = 1, 300 do f = f + assert(loadstring("return function(a) return a * " .. i .. " + 1 end"))()(i) end
show("compile", f)
