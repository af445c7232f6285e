-- OpenSSL's assembly through its library: ciphers, digests, big numbers, elliptic curves.
local ffi = require("ffi")
ffi.cdef[[
void *EVP_CIPHER_CTX_new(void); void EVP_CIPHER_CTX_free(void *);
const void *EVP_get_cipherbyname(const char *);
int EVP_CIPHER_get_key_length(const void *); int EVP_CIPHER_get_iv_length(const void *);
int EVP_EncryptInit_ex(void *, const void *, void *, const char *, const char *);
int EVP_DecryptInit_ex(void *, const void *, void *, const char *, const char *);
int EVP_EncryptUpdate(void *, char *, int *, const char *, int);
int EVP_DecryptUpdate(void *, char *, int *, const char *, int);
int EVP_EncryptFinal_ex(void *, char *, int *); int EVP_DecryptFinal_ex(void *, char *, int *);
int EVP_CIPHER_CTX_ctrl(void *, int, int, void *);
const void *EVP_get_digestbyname(const char *);
int EVP_Digest(const char *, size_t, unsigned char *, unsigned *, const void *, void *);
void *BN_new(void); void *BN_CTX_new(void); int BN_hex2bn(void **, const char *);
char *BN_bn2hex(const void *); int BN_mod_exp(void *, void *, void *, void *, void *);
int BN_mul(void *, void *, void *, void *); int BN_div(void *, void *, void *, void *, void *);
void *EC_GROUP_new_by_curve_name(int); void *EC_POINT_new(void *);
int EC_POINT_mul(void *, void *, void *, void *, void *, void *);
char *EC_POINT_point2hex(void *, void *, int, void *);
int X25519(unsigned char *, const unsigned char *, const unsigned char *);
]]
local c = ffi.load("libcrypto.so.3")
local state = 12345
local function random()
  state = (state * 1103515245 + 12345) % 2147483648
  return math.floor(state / 65536)
end
local function bytes(n)
  local t = {}
  for i = 1, n do t[i] = string.char(random() % 256) end
  return table.concat(t)
end
local function hex(s) return (s:gsub(".", function(x) return ("%02x"):format(x:byte()) end)) end
local function digest(name, s)
  local out, len = ffi.new("unsigned char[64]"), ffi.new("unsigned[1]")
  assert(c.EVP_Digest(s, #s, out, len, c.EVP_get_digestbyname(name), nil) == 1, name)
  return hex(ffi.string(out, len[0]))
end
local lengths = {0, 1, 15, 16, 17, 31, 63, 64, 65, 127, 128, 255, 256, 300, 1000, 4096, 10007}
for _, name in ipairs{"MD5", "SHA1", "SHA256", "SHA384", "SHA512", "SHA3-256", "BLAKE2b512", "SM3"} do
  local all = {}
  for _, n in ipairs(lengths) do all[#all + 1] = digest(name, bytes(n)) end
  print(name, digest("SHA256", table.concat(all)))
end
for _, name in ipairs{"AES-128-ECB", "AES-128-CBC", "AES-256-CBC", "AES-192-CTR", "AES-256-CTR",
    "AES-128-GCM", "AES-256-GCM", "AES-128-XTS", "AES-256-OCB", "ChaCha20", "ChaCha20-Poly1305",
    "CAMELLIA-256-CBC", "DES-EDE3-CBC"} do
  local cipher = c.EVP_get_cipherbyname(name)
  if cipher == nil then print(name, "absent") else
    local all = {}
    for _, n in ipairs(lengths) do
      if not name:find("XTS") or n >= 16 then
        local key, iv = bytes(c.EVP_CIPHER_get_key_length(cipher)), bytes(math.max(1, c.EVP_CIPHER_get_iv_length(cipher)))
        local plain = bytes(n)
        local aead = name:find("GCM") or name:find("OCB") or name:find("Poly")
        local x = c.EVP_CIPHER_CTX_new()
        local out, len, more = ffi.new("char[?]", n + 64), ffi.new("int[1]"), ffi.new("int[1]")
        assert(c.EVP_EncryptInit_ex(x, cipher, nil, key, iv) == 1, name)
        if aead then c.EVP_EncryptUpdate(x, nil, len, "header", 6) end
        assert(c.EVP_EncryptUpdate(x, out, len, plain, n) == 1, name)
        assert(c.EVP_EncryptFinal_ex(x, out + len[0], more) == 1, name)
        local secret = ffi.string(out, len[0] + more[0])
        local tag = ffi.new("char[16]")
        if aead then assert(c.EVP_CIPHER_CTX_ctrl(x, 0x10, 16, tag) == 1) end
        all[#all + 1] = secret .. (aead and ffi.string(tag, 16) or "")
        c.EVP_DecryptInit_ex(x, cipher, nil, key, iv)
        if aead then
          c.EVP_CIPHER_CTX_ctrl(x, 0x11, 16, tag)
          c.EVP_DecryptUpdate(x, nil, len, "header", 6)
        end
        assert(c.EVP_DecryptUpdate(x, out, len, secret, #secret) == 1, name)
        assert(c.EVP_DecryptFinal_ex(x, out + len[0], more) == 1, name)
        assert(ffi.string(out, len[0] + more[0]) == plain, name .. " does not come back")
        c.EVP_CIPHER_CTX_free(x)
      end
    end
    print(name, digest("SHA256", table.concat(all)))
  end
end
local x = c.BN_CTX_new()
local function number(n)
  local p = ffi.new("void *[1]")
  assert(c.BN_hex2bn(p, hex(n)) > 0)
  return p[0]
end
for _, n in ipairs{32, 64, 128, 192, 256} do
  local r, q = c.BN_new(), c.BN_new()
  local a, e, m = number(bytes(n)), number(bytes(n)), number("\255" .. bytes(n - 2) .. "\1")
  assert(c.BN_mod_exp(r, a, e, m, x) == 1)
  print("modexp " .. n * 8, digest("SHA256", ffi.string(c.BN_bn2hex(r))))
  assert(c.BN_mul(r, a, e, x) == 1 and c.BN_div(q, r, r, m, x) == 1)
  print("muldiv " .. n * 8, digest("SHA256", ffi.string(c.BN_bn2hex(q)) .. ffi.string(c.BN_bn2hex(r))))
end
for _, curve in ipairs{415, 715, 716} do
  local group = c.EC_GROUP_new_by_curve_name(curve)
  local point = c.EC_POINT_new(group)
  assert(c.EC_POINT_mul(group, point, number(bytes(32)), nil, nil, x) == 1)
  print("curve " .. curve, ffi.string(c.EC_POINT_point2hex(group, point, 4, x)))
end
