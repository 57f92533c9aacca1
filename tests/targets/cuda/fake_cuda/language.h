// What text of scheduled functions uses of CUDA C++ beyond the emulator's toolkit.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "cuda_runtime.h"

using std::max;
using std::min;

#define VECTOR(type, name)                                        \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };        \
  struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; };  \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTOR(int, int)
VECTOR(long long, longlong)
VECTOR(unsigned char, uchar)
#undef VECTOR

inline unsigned __activemask() { return ~0u; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

#define uint unsigned int
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
