// Processes that check themselves while signals, switches and page faults interrupt them: x87, SSE
// and AVX results, text, deep stacks with canaries, strings, code written as it runs, and all
// registers held over a loop. `stress PROCESSES SECONDS MICROSECONDS`, the last between two signals.
// Without arguments it prints digests, which are the same on every processor with AVX2 and FMA.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <math.h>
#include <immintrin.h>

typedef uint64_t u64; typedef uint32_t u32;
static u64 mix(u64 h, u64 x) { h ^= x; h *= 0x9E3779B97F4A7C15ull; return h ^ (h >> 29); }
static u64 next(u64 *s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }
static volatile sig_atomic_t ticks;

static u64 bits(double d) { u64 r; memcpy(&r, &d, 8); return r; }

__attribute__((noinline)) static u64 k_x87(u64 seed) {
  u64 s = seed * 77 + 1, h = seed;
  long double a = 1.25L, b = 0.5L, c = 3.0L, d = 0.1L, e = 7.0L;
  for (int i = 0; i < 400; i++) {
    long double x = (long double)(int64_t)(next(&s) >> 20) / 65536.0L;
    a = a * 0.75L + x; b = b / 1.0625L - a; c = sqrtl(fabsl(b)) + c * 0.5L; d = d * 0.25L + c - a; e = e * 0.125L + d * b;
  }
  long double all[5] = {a, b, c, d, e};
  for (int i = 0; i < 5; i++) { u64 m; memcpy(&m, &all[i], 8); h = mix(h, m); }
  return h;
}
__attribute__((noinline)) static u64 k_sse(u64 seed) {
  u64 s = seed * 99 + 5, h = seed; double v[16];
  for (int i = 0; i < 16; i++) v[i] = i + 0.3;
  for (int i = 0; i < 300; i++) for (int j = 0; j < 16; j++)
    v[j] = v[j] * 0.5 + (double)(int64_t)(next(&s) >> 40) / (1.0 + fabs(v[(j + 1) & 15]));
  for (int i = 0; i < 16; i++) h = mix(h, bits(v[i]));
  return h;
}
__attribute__((noinline, target("avx2,fma"))) static u64 k_avx(u64 seed) {
  __m256i a[8]; u64 s = seed + 17; u64 h = seed;
  for (int i = 0; i < 8; i++) a[i] = _mm256_set_epi64x(next(&s), next(&s), next(&s), next(&s));
  __m256d f = _mm256_set_pd(1, 2, 3, 4), g = _mm256_set_pd(.5, .25, .125, .0625);
  for (int i = 0; i < 400; i++) {
    for (int j = 0; j < 8; j++) {
      a[j] = _mm256_add_epi32(a[j], _mm256_shuffle_epi32(a[(j + 3) & 7], 0x1b));
      a[j] = _mm256_xor_si256(a[j], _mm256_slli_epi64(a[(j + 1) & 7], 7));
    }
    f = _mm256_fmadd_pd(f, g, _mm256_cvtepi32_pd(_mm256_castsi256_si128(a[0])));
    a[2] = _mm256_permutevar8x32_epi32(a[2], a[3]);
  }
  u64 out[4]; double fo[4];
  for (int j = 0; j < 8; j++) { _mm256_storeu_si256((void *)out, a[j]); for (int i = 0; i < 4; i++) h = mix(h, out[i]); }
  _mm256_storeu_pd(fo, f);
  for (int i = 0; i < 4; i++) h = mix(h, bits(fo[i]));
  return h;
}
__attribute__((noinline)) static u64 k_text(u64 seed) {
  char b[512]; u64 h = seed, s = seed + 3;
  for (int i = 0; i < 12; i++) {
    double d = (double)(int64_t)next(&s) / 1e9; float f = (float)d; long double l = (long double)d * 3.0L;
    int n = snprintf(b, sizeof b, "%a %.9g %La %.20Lg %d %llx %s", d, f, l, l, (int)s, (long long)(s >> 3), "text");
    for (int j = 0; j < n; j++) h = mix(h, b[j]);
    h = mix(h, bits(strtod(b, 0)));
  }
  return h;
}
__attribute__((noinline)) static u64 deep(u64 n, u64 s) {
  char pad[96]; memset(pad, (int)(n + s), sizeof pad);
  u64 r = n ? deep(n - 1, mix(s, n)) : s;
  u64 sum = 0; for (unsigned i = 0; i < sizeof pad; i++) sum += (unsigned char)pad[i] * (i + 1);
  return mix(r, sum);
}
__attribute__((noinline)) static u64 k_deep(u64 seed) { return deep(200, seed); }
__attribute__((noinline)) static u64 k_string(u64 seed) {
  static char a[70000], b[70000]; u64 s = seed + 9, h = seed;
  size_t n = 1000 + next(&s) % 60000;
  for (size_t i = 0; i < n; i++) a[i] = (char)(1 + (i * 7 + seed) % 250);
  a[n] = 0;
  memcpy(b + seed % 31, a, n + 1); memmove(b + 5, b + seed % 31, n + 1);
  h = mix(h, strlen(b + 5)); h = mix(h, memcmp(a, b + 5, n + 1) == 0);
  h = mix(h, (u64)((char *)memchr(b + 5, a[n / 2], n) - b));
  void *d = b; const void *src = a; size_t c = n;
  __asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(c) : : "memory");
  h = mix(h, memcmp(a, b, n) == 0);
  d = b; c = n / 4; 
  __asm__ volatile("rep stosl" : "+D"(d), "+c"(c) : "a"((u32)seed) : "memory");
  for (size_t i = 0; i < n; i += 97) h = mix(h, (unsigned char)b[i]);
  return h;
}
__attribute__((noinline)) static u64 k_page(u64 seed) {
  size_t len = 1 << 18; unsigned char *m = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  u64 h = seed;
  for (size_t i = 0; i + 8 < len; i += 4093) { u64 x = mix(seed, i); memcpy(m + i, &x, 8); }
  madvise(m + 8192, 4096, MADV_DONTNEED);
  for (size_t i = 0; i + 8 < len; i += 4093) { u64 x; memcpy(&x, m + i, 8); h = mix(h, x); }
  munmap(m, len); return h;
}
// A function written anew each time: mov eax, imm32; ret.
static unsigned char *jit;
__attribute__((noinline)) static u64 k_jit(u64 seed) {
  u64 h = seed, s = seed + 4;
  for (int i = 0; i < 40; i++) {
    u32 v = (u32)next(&s); unsigned char *p = jit + (s >> 8) % 4000;
    p[0] = 0xb8; memcpy(p + 1, &v, 4); p[5] = 0xc3;
    u32 got = ((u32(*)(void))(uintptr_t)p)();
    if (got != v) return 0;
    h = mix(h, got);
  }
  return h;
}
// All registers hold their values over a loop in which only interrupts can disturb them.
static int k_regs_bad;
#ifdef __x86_64__
#define VREGS 16
#else
#define VREGS 8
#endif
static unsigned char vin[VREGS * 32] __attribute__((aligned(32))), vout[VREGS * 32] __attribute__((aligned(32)));
static unsigned char fin[112] __attribute__((aligned(16))), fout[112] __attribute__((aligned(16)));
#define L(n) "vmovups " #n "*32(%[in]), %%ymm" #n "\n\t"
#define S(n) "vmovups %%ymm" #n ", " #n "*32(%[out])\n\t"
__attribute__((noinline)) static u64 k_regs(u64 seed) {
  u64 s = seed + 21;
  for (int i = 0; i < VREGS * 4; i++) { u64 x = next(&s); memcpy(vin + i * 8, &x, 8); }
  u32 mx = 0x1f80 | (seed & 3) << 13, mo = 0; unsigned short cw = 0x037f | (seed & 3) << 10, co = 0;
  u32 fl = 0x202 | (seed & 1) | (seed & 2) << 1 | (seed & 4) << 2 | (seed & 8) << 3 | (seed & 16) << 3 | (seed & 32) << 6, fo;
  u32 mkeep; unsigned short ckeep; __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mkeep), "=m"(ckeep));
  __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mx), "m"(cw));
  unsigned n = 3000 + seed % 1000;
  int upper = seed & 64 ? 0 : 1;
#ifdef __x86_64__
  u64 g[6];
  if (!upper) __asm__ volatile("vzeroupper");
  __asm__ volatile(
    L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7) L(8) L(9) L(10) L(11) L(12) L(13) L(14) L(15)
    "fld1\n fldpi\n fldl2e\n fldz\n fldlg2\n"
    "mov %[seed], %%r8\n lea 1(%%r8), %%r9\n lea 2(%%r8), %%r10\n lea 3(%%r8), %%r11\n lea 4(%%r8), %%r12\n lea 5(%%r8), %%r13\n"
    "sub $128, %%rsp\n pushq %%rax\n popfq\n"
    "1: lea -1(%%rcx), %%rcx\n jrcxz 2f\n jmp 1b\n"
    "2: pushfq\n popq %%rax\n add $128, %%rsp\n"
    S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
    "mov %%r8, (%[g])\n mov %%r9, 8(%[g])\n mov %%r10, 16(%[g])\n mov %%r11, 24(%[g])\n mov %%r12, 32(%[g])\n mov %%r13, 40(%[g])\n"
    : "=a"(fo), "+c"(n) : "0"(fl), [in] "S"(vin), [out] "D"(vout), [seed] "d"(seed), [g] "b"(g)
    : "memory", "r8", "r9", "r10", "r11", "r12", "r13", "cc",
     "xmm0","xmm1","xmm2","xmm3","xmm4","xmm5","xmm6","xmm7","xmm8","xmm9","xmm10","xmm11","xmm12","xmm13","xmm14","xmm15");
  for (int i = 0; i < 6; i++) if (g[i] != seed + i) { k_regs_bad = 1; }
#else
  if (!upper) __asm__ volatile("vzeroupper");
  __asm__ volatile(
    L(0) L(1) L(2) L(3) L(4) L(5) L(6) L(7)
    "fld1\n fldpi\n fldl2e\n fldz\n fldlg2\n"
    "pushl %%eax\n popfl\n"
    "1: lea -1(%%ecx), %%ecx\n jecxz 2f\n jmp 1b\n"
    "2: pushfl\n popl %%eax\n"
    S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7)
    : "=a"(fo), "+c"(n) : "0"(fl), [in] "S"(vin), [out] "D"(vout) : "memory", "cc",
     "xmm0","xmm1","xmm2","xmm3","xmm4","xmm5","xmm6","xmm7");
#endif
  long double st[5]; 
  __asm__ volatile("fstpt %0\n fstpt %1\n fstpt %2\n fstpt %3\n fstpt %4\n fnstcw %5\n stmxcsr %6\n fldcw %7\n ldmxcsr %8"
    : "=m"(st[0]), "=m"(st[1]), "=m"(st[2]), "=m"(st[3]), "=m"(st[4]), "=m"(co), "=m"(mo) : "m"(ckeep), "m"(mkeep));
  if (memcmp(vin, vout, sizeof vin)) k_regs_bad |= 2;
  if ((mo & ~0x3f) != mx || co != cw) k_regs_bad |= 4;
  if ((fo & 0x8d5) != (fl & 0x8d5)) k_regs_bad |= 8;
  if (st[3] < 3.14L || st[3] > 3.15L || st[4] != 1 || st[1] != 0) k_regs_bad |= 16;
  if (k_regs_bad) { printf("BAD registers %x seed %llx flags %x %x mx %x %x cw %x %x\n", k_regs_bad, (long long)seed, fl, fo, mx, mo, cw, co);
    for (unsigned i = 0; i < sizeof vin; i++) if (vin[i] != vout[i]) printf("%u:%02x/%02x ", i, vin[i], vout[i]);
    printf("\n"); fflush(stdout); _exit(9); }
  return mix(seed, fl);
}
__attribute__((noinline)) static u64 k_adc(u64 seed) {
  u64 s = seed + 2, h = seed; u32 a[16], b[16];
  for (int r = 0; r < 60; r++) {
    for (int i = 0; i < 16; i++) a[i] = next(&s), b[i] = next(&s);
    unsigned char c = 0;
    for (int i = 0; i < 16; i++) c = _addcarry_u32(c, a[i], b[i], &a[i]);
    for (int i = 0; i < 16; i++) h = mix(h, a[i]); h = mix(h, c);
  }
  return h;
}
static u64 (*const kernels[])(u64) = {k_x87, k_sse, k_avx, k_text, k_deep, k_string, k_page, k_jit, k_regs, k_adc};
static const char *names[] = {"x87", "sse", "avx", "text", "deep", "string", "page", "jit", "regs", "adc"};
enum { K = sizeof kernels / sizeof *kernels, SEEDS = 40 };
static u64 right[K][SEEDS];

static void tick(int sig) {
  (void)sig; int keep = errno; ticks++;
  u32 m; unsigned short c; __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(m), "=m"(c));
  if ((m & ~0x3f) != 0x1f80 && ((m >> 13) & 3) == 0) { printf("BAD handler mxcsr %x\n", m); _exit(8); }
  u32 m0 = 0x1f80; unsigned short c0 = 0x37f; __asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(m0), "m"(c0));
  // The handler uses everything, with values of its own.
  int k = ticks % 5; u64 sd = ticks % SEEDS; static const int which[5] = {0, 1, 2, 4, 9};
  u64 r = kernels[which[k]](sd);
  if (r != right[which[k]][sd]) { printf("BAD in handler %s seed %d\n", names[which[k]], (int)sd); fflush(stdout); _exit(7); }
  errno = keep;
}
static int child(u64 id, int seconds, int us) {
  struct sigaction sa; memset(&sa, 0, sizeof sa); sa.sa_handler = tick; sa.sa_flags = SA_RESTART | (id & 1 ? SA_ONSTACK : 0);
  stack_t st = {.ss_sp = malloc(1 << 17), .ss_size = 1 << 17}; sigaltstack(&st, 0);
  sigaction(SIGALRM, &sa, 0);
  struct itimerval it = {{0, us + id * 37}, {0, us + id * 37}};
  setitimer(ITIMER_REAL, &it, 0);
  struct timeval t0, t; gettimeofday(&t0, 0); u64 s = id * 1234567 + 1, rounds = 0;
  do {
    int k = next(&s) % K, sd = next(&s) % SEEDS;
    u64 r = kernels[k](sd);
    if (r != right[k][sd]) { printf("BAD %s seed %d: %llx not %llx\n", names[k], sd, (long long)r, (long long)right[k][sd]); fflush(stdout); return 1; }
    rounds++; if (rounds % 16 == 0) { usleep(0); gettimeofday(&t, 0); }
    else gettimeofday(&t, 0);
  } while (t.tv_sec - t0.tv_sec < seconds);
  return 0;
}
int main(int argc, char **argv) {
  jit = mmap(0, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  u64 all = 0;
  for (int k = 0; k < K; k++) for (int s = 0; s < SEEDS; s++) { right[k][s] = kernels[k](s); all = mix(all, right[k][s]); }
  for (int k = 0; k < K; k++) { u64 h = 0; for (int s = 0; s < SEEDS; s++) h = mix(h, right[k][s]); if (argc < 3) printf("%s %016llx\n", names[k], (long long)h); }
  if (argc > 1 && !strcmp(argv[1], "exec")) { // short lives: exec ourselves again and again
    char buf[64]; snprintf(buf, sizeof buf, "%016llx", (long long)all);
    if (argc == 3) { if (strcmp(buf, argv[2])) { printf("BAD exec %s %s\n", buf, argv[2]); return 1; } return 0; }
    return 0;
  }
  int n = argc > 1 ? atoi(argv[1]) : 0, seconds = argc > 2 ? atoi(argv[2]) : 10, us = argc > 3 ? atoi(argv[3]) : 1000, bad = 0;
  if (!n) { printf("all %016llx\n", (long long)all); return 0; }
  fflush(stdout);
  for (int i = 0; i < n; i++) if (fork() == 0) _exit(child(i + 1, seconds, us));
  for (int i = 0; i < n; i++) { int st; wait(&st); if (st) { printf("BAD status %x\n", st); bad = 1; } }
  printf("%d-bit %s\n", (int)sizeof(void *) * 8, bad ? "BAD" : "good");
  return bad;
}
