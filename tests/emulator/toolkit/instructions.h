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

// The small floats: bits of exponent and mantissa; E4M3 has one NaN, E5M2 infinities as well.
inline double small_float(int exponent_bits, int mantissa_bits, uint32_t code) {
  int bias = (1 << (exponent_bits - 1)) - 1;
  int e = code >> mantissa_bits & ((1 << exponent_bits) - 1);
  int m = code & ((1 << mantissa_bits) - 1);
  bool negative = code >> (exponent_bits + mantissa_bits) & 1;
  double x = e ? ldexp((1 << mantissa_bits) + m, e - bias - mantissa_bits)
               : ldexp(m, 1 - bias - mantissa_bits);
  if (exponent_bits == 4 && e == 15 && m == 7) x = NAN;
  if (exponent_bits == 5 && e == 31) x = m ? NAN : INFINITY;
  return negative ? -x : x;
}
template <int exponent_bits, int mantissa_bits, int bits_of_code>
struct Small {
  static constexpr int bits = bits_of_code;
  static double value(uint32_t code) { return small_float(exponent_bits, mantissa_bits, code); }
};
typedef Small<2, 1, 4> e2m1;
typedef Small<2, 3, 8> e2m3;  // one a byte
typedef Small<3, 2, 8> e3m2;
typedef Small<4, 3, 8> e4m3;
typedef Small<5, 2, 8> e5m2;
struct ue4m3 {
  static double value(uint32_t byte) { return small_float(4, 3, byte & 127); }
};
struct ue8m0 {
  static double value(uint32_t byte) { return byte == 255 ? NAN : ldexp(1.0, int(byte) - 127); }
};

// With byte-id and thread-id 0: lane 4 g has the scales of row g of A and of column g of B, lane
// 4 g + 1 those of row g + 8.
template <int depth, int scales, class TA, class TB, class TS>
inline void mma_block_scaled(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1,
                             uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, uint32_t sa,
                             uint32_t sb) {
  struct Brought {
    float d[4];
    uint32_t a[4], b[2], sa, sb;
  } m{{d0, d1, d2, d3}, {a0, a1, a2, a3}, {b0, b1}, sa, sb};
  with_warp(&m, [](void** all) {
    Precise precise;
    constexpr int each = 32 / TA::bits, block = depth / scales;
    static double A[16][depth], B[8][depth], SA[16][scales], SB[8][scales];
    for (int t = 0; t < 32; t++) {
      auto* m = (Brought*)all[t];
      int g = t / 4, c = t % 4;
      for (int e = 0; e < each; e++) {
        auto at = [=](uint32_t word) { return word >> e * TA::bits & ((1u << TA::bits) - 1); };
        for (int i = 0; i < 4; i++)
          A[g + i % 2 * 8][(i / 2 * 4 + c) * each + e] = TA::value(at(m->a[i]));
        for (int i = 0; i < 2; i++) B[g][(i * 4 + c) * each + e] = TB::value(at(m->b[i]));
      }
      for (int s = 0; s < scales; s++) {
        if (c < 2) SA[g + c * 8][s] = TS::value(m->sa >> 8 * s & 255);
        if (c == 0) SB[g][s] = TS::value(m->sb >> 8 * s & 255);
      }
    }
    for (int t = 0; t < 32; t++) {
      auto* m = (Brought*)all[t];
      for (int i = 0; i < 4; i++) {
        int row = t / 4 + i / 2 * 8, column = t % 4 * 2 + i % 2;
        double sum = m->d[i];
        for (int k = 0; k < depth; k++)
          sum += A[row][k] * SA[row][k / block] * (B[column][k] * SB[column][k / block]);
        m->d[i] = float(sum);
      }
    }
  });
  d0 = m.d[0], d1 = m.d[1], d2 = m.d[2], d3 = m.d[3];
}

inline void bar_sync(uint32_t number, uint32_t threads) { barrier(number, threads); }

}  // namespace emulator
