// What PTX instructions do, under the names that ptx.py puts in their place. Fragments are those of
// the PTX ISA, "Matrix Fragments"; sums are exact (double) and rounded once, where the hardware may
// round after every few products.
#pragma once
#include <cmath>

#include "fibers.h"

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace emulator {

// With `--ftz=true` float32 arithmetic takes subnormals for zeros, and makes none. Instructions on
// bfloat16 and tensor cores do not: they are computed within a `Precise`.
#ifdef __SSE2__
constexpr unsigned FLUSH = 0x8040;
inline void set_flush(bool flush) { _mm_setcsr((_mm_getcsr() & ~FLUSH) | (flush ? FLUSH : 0)); }
struct Precise {
  unsigned saved = _mm_getcsr();
  Precise() { _mm_setcsr(saved & ~FLUSH); }
  ~Precise() { _mm_setcsr(saved); }
};
#else
inline void set_flush(bool flush) {
  if (flush) throw std::runtime_error("flushing subnormals is emulated on x86 only");
}
struct Precise {
  Precise() {}
};
#endif

// An address in shared memory is its distance from `shared_memory`.
inline uint32_t shared_address(const void* p) { return uint32_t((const char*)p - shared_memory); }
inline char* at_shared(uint32_t address) { return shared_memory + int32_t(address); }

inline float real(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline float from_bfloat16(uint32_t half) { return real(half << 16); }

inline uint32_t to_bfloat16(double x) {  // to nearest even, once
  if (std::isnan(x)) return 0x7FFF;  // PTX: the canonical NaN
  float f = float(x);
  if (double(f) != x && std::isfinite(f)) {  // round to odd first: the second rounding sees a tie
    uint32_t u = bits_of(f);
    bool away = std::fabs(double(f)) > std::fabs(x);
    if (away) u--;
    f = real(u | 1);
  }
  uint32_t u = bits_of(f);
  if (std::isinf(f)) return u >> 16;
  return (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}

inline void fma_bf16x2(uint32_t& d, uint32_t a, uint32_t b, uint32_t c) {
  Precise precise;
  uint32_t r = 0;
  for (int h = 0; h < 32; h += 16) {
    double product = double(from_bfloat16(a >> h & 0xFFFF)) * from_bfloat16(b >> h & 0xFFFF);
    r |= to_bfloat16(product + from_bfloat16(c >> h & 0xFFFF)) << h;
  }
  d = r;
}

inline void cvt_bf16x2(uint32_t& d, float high, float low) {
  Precise precise;
  d = to_bfloat16(high) << 16 | to_bfloat16(low);
}

// cp.async: the target is undefined from the start of a copy until its group is waited for. It is
// filled with NaN, and the bytes land at once or when waited for, by chance.
inline void land(const Copy& c) {
  memcpy(c.target, c.source, c.valid);
  memset(c.target + c.valid, 0, c.size - c.valid);
}
template <int size>
inline void cp_async(uint32_t target, const void* source, uint32_t valid = size) {
  Copy c{at_shared(target), (const char*)source, size, int(valid)};
  if (target % size || (valid && (uintptr_t)source % size)) fail("cp.async is not aligned");
  if (draw(2)) return land(c);
  memset(c.target, 0xFF, size);
  current->groups.back().push_back(c);
}
inline void commit_group() { current->groups.push_back({}); }
template <int pending>
inline void wait_group() {
  auto& groups = current->groups;
  while (int(groups.size()) - 1 > pending) {
    for (auto& c : groups.front()) land(c);
    groups.erase(groups.begin());
  }
}
inline void wait_all() {
  commit_group();
  wait_group<0>();
}

template <int count>
inline void ldmatrix(uint32_t* r, uint32_t address) {
  struct Brought {
    uint32_t address, *r;
  } b{address, r};
  if (address % 16) fail("ldmatrix is not aligned");
  with_warp(&b, [](void** all) {
    for (int m = 0; m < count; m++)
      for (int t = 0; t < 32; t++) {
        const char* row = at_shared(((Brought*)all[m * 8 + t / 4])->address);
        memcpy(&((Brought*)all[t])->r[m], row + t % 4 * 4, 4);
      }
  });
}
inline void ldmatrix_x4(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t address) {
  uint32_t r[4];
  ldmatrix<4>(r, address);
  a = r[0], b = r[1], c = r[2], d = r[3];
}
inline void ldmatrix_x2(uint32_t& a, uint32_t& b, uint32_t address) {
  uint32_t r[2];
  ldmatrix<2>(r, address);
  a = r[0], b = r[1];
}

struct Mma {
  float* d;
  uint32_t a[4], b[2];
  float c[4];
};

inline void mma_m16n8k16_bf16(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1,
                              uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, float c0,
                              float c1, float c2, float c3) {
  float d[4];
  Mma m{d, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
  with_warp(&m, [](void** all) {
    Precise precise;
    static double A[16][16], B[8][16];
    for (int t = 0; t < 32; t++) {
      auto* m = (Mma*)all[t];
      int g = t / 4, k = t % 4 * 2;
      for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 4; i++)
          A[g + i % 2 * 8][k + i / 2 * 8 + h] = from_bfloat16(m->a[i] >> 16 * h & 0xFFFF);
        for (int i = 0; i < 2; i++) B[g][k + i * 8 + h] = from_bfloat16(m->b[i] >> 16 * h & 0xFFFF);
      }
    }
    for (int t = 0; t < 32; t++) {
      auto* m = (Mma*)all[t];
      for (int i = 0; i < 4; i++) {
        double sum = m->c[i];
        const double *row = A[t / 4 + i / 2 * 8], *column = B[t % 4 * 2 + i % 2];
        for (int k = 0; k < 16; k++) sum += row[k] * column[k];
        m->d[i] = float(sum);
      }
    }
  });
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

inline void bar_sync(uint32_t number, uint32_t threads) { barrier(number, threads); }

}  // namespace emulator
